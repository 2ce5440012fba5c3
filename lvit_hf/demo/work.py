"""Long work: a bar that fills, and a button that stops it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .texts import translated


# Of visitors whose long work runs at the same time; single images of others go in between.
CONCURRENT_WORK = 2

Trigger = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """The buttons that start and stop work, and the bar that shows how far it is."""

    start: gr.Button
    stop: gr.Button
    bar: gr.HTML

    def connect(
        self,
        run: Callable[..., Iterator[tuple]],
        inputs: list[gr.components.Component],
        outputs: list[gr.components.Component],
        triggers: list[Trigger],
    ) -> Any:
        """Runs work where it is asked for, and stops it on a click.

        Args:
            run: From the visitor's request and the values of `inputs`, generates the numbers of finished and of all
                steps, followed by values of `outputs`. It does not go on after the step in which it is stopped, or in
                which the visitor leaves.
            inputs: What `run` is called with after the request.
            outputs: What it changes.
            triggers: Events that start it beside the click on the button.

        Returns:
            The event of the work, to which others can be added.
        """

        def run_with_bar(request: gr.Request, *values) -> Iterator[tuple]:
            for finished, total, *results in run(request, *values):
                yield draw_bar(finished, total), *results

        controls = [self.start, self.stop, self.bar]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        waiting = gr.on(
            [self.start.click, *triggers],
            lambda: (gr.Button(interactive=False), gr.Button(interactive=True), draw_bar()),
            outputs=controls,
            queue=False,
            **quiet,
        )
        running = waiting.then(
            run_with_bar,
            inputs,
            [self.bar, *outputs],
            concurrency_limit=CONCURRENT_WORK,
            concurrency_id="work",
            **quiet,
        )

        def rest() -> tuple:
            return gr.Button(interactive=True), gr.Button(interactive=False), ""

        for ended in (running.success, running.failure):  # `then` does not follow an error
            ended(rest, outputs=controls, queue=False, **quiet)
        self.stop.click(rest, outputs=controls, cancels=[running], queue=False, **quiet)
        return running


def build_work(label: str) -> Work:
    """Adds the buttons and the bar.

    Args:
        label: Key of the word on the button that starts the work.
    """
    with gr.Row():
        start = gr.Button(translated(label), variant="primary", scale=3, min_width=120)
        stop = gr.Button(translated("stop"), interactive=False, variant="stop", scale=1, min_width=80)
    return Work(start, stop, gr.HTML(padding=False, elem_classes="work-bar"))


def draw_bar(finished: int | None = None, total: int = 1) -> str:
    """A bar with how much of the work is done; without numbers it is empty."""
    count = "…" if finished is None else f"{finished} / {total}"
    share = 100 * (finished or 0) / total
    return (
        f'<div role="progressbar" aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="{count}"><div style="width: {share:.1f}%"></div></div><div role="status">{count}</div>'
    )

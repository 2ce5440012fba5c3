"""`lvit card` and `lvit push`, `push-space`, `push-dataset-card`: checkpoints, the demo and data sets on the Hub."""

import shutil
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from .common import DATA_HELP, DEFAULT_MODEL, ModelOption, errors_as_sentences, keep_libraries_quiet
from .data import examine


app = typer.Typer()

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", exists=True, file_okay=False, help="Folder of the checkpoint.")
]
RepoOption = Annotated[str, typer.Option("--repo-id", metavar="USER/NAME", help="Repository on the Hub.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
CreatePrOption = Annotated[
    bool, typer.Option("--create-pr", help="Propose it as a pull request to a repository that exists.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes, upload nothing.")]

Target = StrEnum("Target", ["onnx", "openvino"])
TextInput = StrEnum("TextInput", ["ids", "vectors"])


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint: a shipped one's name, a folder, or USER/NAME.")
    ],
    output_dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]", file_okay=False, help="Folder; by default the checkpoint's own, if it is one."
        ),
    ] = None,
    target: Annotated[Target, typer.Option("--to", help="The format.")] = Target.openvino,
    text: Annotated[
        TextInput,
        typer.Option(
            help="What the network takes of a caption: ids of its tokens, or vectors of its words, which the text "
            "tower, a second file, makes of the ids."
        ),
    ] = TextInput.ids,
    int8: Annotated[
        bool, typer.Option("--int8", help="Most weights and activations in 8 bits, for OpenVINO; it needs --data.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA", help=f"Data set that tells how large activations are: {DATA_HELP}; may be repeated."
        ),
    ] = None,
):
    """Write the network for ONNX Runtime or OpenVINO, to the folder onnx, openvino or openvino-int8.

    It takes some minutes.
    """
    with errors_as_sentences(extra="export"):
        if int8 and target != Target.openvino:
            raise ValueError("--int8 is for OpenVINO: leave out --to.")
        if int8 != bool(data):
            raise ValueError("--int8 and --data go together: name data of the kinds that the checkpoint is for.")
        keep_libraries_quiet()
        from lvit_hf.inference.segmenter import Segmenter
        from lvit_hf.io.checkpoints import find_checkpoint
        from lvit_hf.publishing.export import export_network, record_samples

        path = find_checkpoint(model)
        if output_dir is None and not Path(path).is_dir():
            raise ValueError(f"{model} is no folder: name one for the result, lvit export {model} OUT.")
        segmenter = Segmenter.from_pretrained(model, backend="torch")
        samples = record_samples(segmenter, data, text) if data else []
        typer.echo(export_network(segmenter.model, output_dir or Path(path), target, text, samples))


@app.command()
def card(
    checkpoint: CheckpointArgument,
    template: Annotated[Path | None, typer.Option(help="Card with Jinja fields for the figures.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Folder with images and examples.csv: image, text, tile_size.", show_default="the checkpoint's own"
        ),
    ] = None,
):
    """Write a checkpoint's README.md, with the figures that lvit evaluate --record left there."""
    with errors_as_sentences():
        keep_libraries_quiet()
        from lvit_hf.publishing.model_card import TEMPLATE, write_card

        write_card(checkpoint, template or TEMPLATE, examples)


@app.command()
def push(
    checkpoint: CheckpointArgument,
    repo_id: RepoOption,
    private: PrivateOption = False,
    create_pr: CreatePrOption = False,
    dry_run: DryRunOption = False,
):
    """Publish a checkpoint on the Hub, with its processor, code, card and examples, in one commit.

    The token is that of hf auth login, or HF_TOKEN.
    """
    with errors_as_sentences(), TemporaryDirectory() as folder:
        keep_libraries_quiet()
        from lvit_hf.publishing.publish import publish, stage_model

        stage_model(checkpoint, repo_id, Path(folder))
        if dry_run:
            print_files(Path(folder))
        else:
            typer.echo(publish(Path(folder), repo_id, private=private, create_pr=create_pr))


@app.command()
def push_space(
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", metavar="USER/NAME", help="Repository on the Hub; without --out.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    static: Annotated[
        bool, typer.Option("--static", help="A page that runs the network in the visitor's own browser.")
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Write the Space's files to this folder, upload nothing."),
    ] = None,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
):
    """Publish the demo as a Space, with a checkpoint in it or with one that it loads from the Hub.

    With --static it is a smaller page without a server: the network runs in the visitor's own browser.

    The token is that of hf auth login, or HF_TOKEN.
    """
    with errors_as_sentences(extra="export"), TemporaryDirectory() as temporary:
        keep_libraries_quiet()
        from lvit_hf.publishing.publish import publish

        if (repo_id is None) == (output_dir is None):
            raise ValueError("Name the Space's repository with --repo-id, or a folder for its files with --out.")
        if output_dir is not None and output_dir.is_dir() and any(output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty: name a new folder with --out.")
        folder, variables, sdk = Path(temporary) / "space", None, "gradio"
        folder.mkdir()  # with the user's own permissions
        if static:
            from lvit_hf.publishing.static_space import stage_static_space

            stage_static_space(model, folder)
            sdk = "static"
        else:
            from lvit_hf.publishing.space import stage_space

            variable = stage_space(model, folder)
            variables = {"LVIT_MODEL": variable} if variable else None
        if output_dir is not None and not dry_run:
            shutil.copytree(folder, output_dir, dirs_exist_ok=True)
        if repo_id is None or dry_run:
            print_files(folder)
        else:
            typer.echo(publish(folder, repo_id, "space", private, variables=variables, space_sdk=sdk))


@app.command()
def push_dataset_card(
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"Data set: {DATA_HELP}.")],
    repo_id: RepoOption,
    license_id: Annotated[str, typer.Option("--license", help="Licence, as the Hub calls it: cc-by-4.0, other ...")],
    source: Annotated[str, typer.Option(help="Where the data comes from: a sentence, for the card.")],
    terms: Annotated[str, typer.Option(help="What users must observe beside the licence: for the card.")] = "",
    name: Annotated[str | None, typer.Option(help="Title of the card; by default the repository's NAME.")] = None,
    languages: Annotated[
        list[str] | None, typer.Option("--language", help="Language of the captions, by default en; may be repeated.")
    ] = None,
    template: Annotated[Path | None, typer.Option(help="Card with Jinja fields for what was found.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    private: PrivateOption = False,
    create_pr: CreatePrOption = False,
    dry_run: DryRunOption = False,
):
    """Publish the card of a data set on the Hub, with what lvit data check finds in it: the card alone, no data.

    The token is that of hf auth login, or HF_TOKEN.
    """
    with errors_as_sentences(extra="evaluate"), TemporaryDirectory() as folder:
        from huggingface_hub.utils import validate_repo_id

        from lvit_hf.publishing.dataset_card import TEMPLATE, Origin, render_dataset_card
        from lvit_hf.publishing.model_card import CARD
        from lvit_hf.publishing.publish import publish

        validate_repo_id(repo_id)
        title = name or repo_id.rpartition("/")[2]
        origin = Origin(title, license_id, source, terms, tuple(languages or ["en"]))
        _, report = examine(data, model)
        card = render_dataset_card(report, origin, repo_id, template or TEMPLATE)
        card.save(Path(folder) / CARD)
        if dry_run:
            print_files(Path(folder))
            typer.echo(f"\n{card}")
        else:
            typer.echo(publish(Path(folder), repo_id, "dataset", private, create_pr))


def print_files(folder: Path):
    """Prints the names and sizes of all files in a folder, and the sum."""
    from lvit_hf.publishing.publish import list_names

    sizes = {name: (folder / name).stat().st_size for name in list_names(folder)}
    total = f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}"
    for name, size in [*sizes.items(), (total, sum(sizes.values()))]:
        typer.echo(f"{size:>12,} bytes  {name}")

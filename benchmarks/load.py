"""Many users of the demo's service at once: does each get their own answers, how fast, and in how much memory?

Every request has an image of its own, a random crop of a real one, so no answer comes from a cache.
"""

import argparse
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

from lvit_hf.data.load import load_data
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT


ROOT = Path(__file__).parents[1]
SIDES = (160, 320)  # of crops, in pixels
# A pixel may change sides if it lies so close to the threshold: a sum depends a little on what else is in its batch.
TOLERANCE = 1e-3
BATCH = 8


@dataclass
class Case:
    """One request, and its answer when it is the only one.

    Args:
        name: File name of the image.
        image: An RGB image.
        content: The image as PNG.
        text: The caption, or blank.
        threshold: The median of its probabilities, so that no mask is empty or full.
        mask: Booleans of shape `(height, width)`.
        is_close: Whether a pixel's probability is within the tolerance of the threshold.
    """

    name: str
    image: Image.Image
    content: bytes
    text: str
    threshold: float = 0.5
    mask: np.ndarray = field(default_factory=lambda: np.empty(0))
    is_close: np.ndarray = field(default_factory=lambda: np.empty(0))

    def solve(self, segmenter: Segmenter):
        """Computes the answer alone."""
        probabilities = segmenter.segment([self.image], [self.text])[0].probabilities
        self.threshold = float(np.median(probabilities))
        self.mask = probabilities > self.threshold
        self.is_close = abs(probabilities - self.threshold) <= TOLERANCE * self.threshold

    def is_answered_by(self, mask: np.ndarray) -> bool:
        return mask.shape == self.mask.shape and bool(np.all((mask == self.mask) | self.is_close))


def make_cases(sources: Sequence[tuple[Image.Image, str]], count: int, seed: int = 0) -> list[Case]:
    """Crops of real images, flipped or not, of which no two are equal; every fourth has no caption."""
    rng, seen = np.random.default_rng(seed), set()
    cases: list[Case] = []
    while len(cases) < count:
        image, text = sources[len(cases) % len(sources)]
        side = min(int(rng.integers(*SIDES)), *image.size)
        left, top = (int(rng.integers(size - side + 1)) for size in image.size)
        crop = image.crop((left, top, left + side, top + side))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        buffer = io.BytesIO()
        crop.save(buffer, "PNG")
        if buffer.getvalue() not in seen:
            seen.add(buffer.getvalue())
            cases.append(Case(f"image-{len(cases)}.png", crop, buffer.getvalue(), text if len(cases) % 4 else ""))
    return cases


@dataclass(frozen=True)
class Answer:
    """What a client got: seconds from the first byte sent to the mask received, and a verdict."""

    seconds: float
    verdict: str


def ask(client: httpx.Client, url: str, case: Case) -> tuple[np.ndarray, dict]:
    """Uploads an image and returns its mask and measurements, by the calls that the documentation shows."""
    uploaded = client.post(f"{url}gradio_api/upload", files={"files": (case.name, case.content)})
    image = {"path": uploaded.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}
    call = f"{url}gradio_api/call/v2/segment"
    parameters = {"image": image, "text": case.text, "threshold": case.threshold}
    event = client.post(call, json=parameters).raise_for_status().json()["event_id"]
    stream = client.get(f"{call}/{event}").text
    match = re.search(r"event: complete\ndata: (.*)", stream)
    if match is None:
        raise ValueError(f"The service refused {case.name}: {stream[-300:]}")
    mask, _, measurements = json.loads(match[1])
    content = client.get(mask["url"]).raise_for_status().content
    return np.asarray(Image.open(io.BytesIO(content))) > 0, measurements


def judge(case: Case, mask: np.ndarray, measurements: dict, cases: Sequence[Case]) -> str:
    """Whether an answer is right, wrong, or that of another request."""
    is_own = (measurements["image"], measurements["text"] or "") == (case.name, case.text)
    if is_own and case.is_answered_by(mask):
        return "right"
    return "mixed up" if not is_own or any(other.is_answered_by(mask) for other in cases) else "wrong"


def run_client(url: str, own: Sequence[Case], cases: Sequence[Case], deadline: float) -> list[Answer]:
    """One user, who sends a request after another until the deadline."""
    answers = []
    with httpx.Client(timeout=120) as client:
        for case in own:
            start = time.monotonic()
            if start > deadline:
                break
            try:
                verdict = judge(case, *ask(client, url, case), cases)
            except (httpx.HTTPError, ValueError) as error:
                print(error, file=sys.stderr)
                verdict = "lost"
            answers.append(Answer(time.monotonic() - start, verdict))
    return answers


def run_load(url: str, cases: Sequence[Case], clients: int, limit: float) -> tuple[list[Answer], float]:
    """Lets clients share the cases and send them at the same time.

    Args:
        url: The service's address.
        cases: What they send, with answers.
        clients: Number of clients.
        limit: Seconds after which no client sends anything more.

    Returns:
        All answers, and the seconds that passed.
    """
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        shares = [cases[index::clients] for index in range(clients)]
        answers = pool.map(lambda own: run_client(url, own, cases, start + limit), shares)
        return [answer for share in answers for answer in share], time.monotonic() - start


class MemoryMeter(threading.Thread):
    """Reads the memory of a process once a second, in MiB."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.readings: list[float] = []
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()

    def run(self):
        while not self._stopped.wait(1):
            self.readings.append(self._process.memory_info().rss / 2**20)

    def stop(self) -> list[float]:
        self._stopped.set()
        self.join()
        return self.readings


@contextmanager
def serve() -> Iterator[tuple[str, int]]:
    """Runs `app.py` on a free port of loopback: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 300
        while not is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("Error: app.py does not answer.")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}health").text == "ok"
    except httpx.HTTPError:
        return False


@torch.inference_mode()
def time_forward(segmenter: Segmenter, cases: Sequence[Case], batch: int, seconds: float = 10) -> float:
    """Images per second of the network alone, on inputs that are tensors already."""
    chosen = cases[:batch]
    inputs = segmenter.processor(  # type: ignore[call-arg]
        images=[case.image for case in chosen], text=[case.text for case in chosen], return_tensors="pt"
    ).to(segmenter.model.device)
    segmenter.model(**inputs)
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        segmenter.model(**inputs)
        runs += 1
    return runs * batch / (time.perf_counter() - start)


def read_examples() -> list[tuple[Image.Image, str]]:
    with (ROOT / "examples" / "examples.csv").open(newline="", encoding="utf-8") as file:
        return [
            (Image.open(ROOT / "examples" / row["image"]).convert("RGB"), row["text"]) for row in csv.DictReader(file)
        ]


def read_sources(folders: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Images and captions of the repository's examples, and of the validation splits of data sets."""
    rows = [row for folder in folders for row in load_data(folder, "valid")]
    return read_examples() + [(row["image"].convert("RGB"), row["text"] or "") for row in rows]


def report(answers: list[Answer], seconds: float, memory: list[float]) -> Iterator[tuple[str, str]]:
    verdicts, times = Counter(answer.verdict for answer in answers), [answer.seconds for answer in answers]
    yield "lost / wrong / mixed up", " / ".join(str(verdicts[name]) for name in ("lost", "wrong", "mixed up"))
    yield "latency, p50 / p95", " / ".join(f"{np.percentile(times, share):.2f} s" for share in (50, 95))
    yield "throughput", f"{len(answers) / seconds:.1f} images/s"
    shares = (0.25, 0.5, 0.75, 1)
    sizes = [f"{memory[max(int(len(memory) * share) - 1, 0)]:.0f}" for share in shares] if memory else []
    yield "server's memory after 25 / 50 / 75 / 100 % of the time", f"{' / '.join(sizes)} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=50, help="of each client")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which nothing more is sent")
    parser.add_argument("--data", nargs="*", default=[], help="data sets whose images are used beside the examples")
    arguments = parser.parse_args()
    count = arguments.clients * arguments.requests
    first, *cases = make_cases(read_sources(arguments.data), count + 1)
    segmenter = Segmenter.from_pretrained(DEFAULT_CHECKPOINT)
    forward = [time_forward(segmenter, cases, batch) for batch in (1, BATCH)]
    start = time.perf_counter()
    for case in tqdm(cases, desc="alone"):
        case.solve(segmenter)
    alone = count / (time.perf_counter() - start)
    with serve() as (url, pid):
        run_load(url, [first], 1, 60)  # what the first request loads is no part of the load
        meter = MemoryMeter(pid)
        meter.start()
        answers, seconds = run_load(url, cases, arguments.clients, arguments.limit)
        memory = meter.stop()
    print(f"| {count} requests of {arguments.clients} clients at once | |\n|---|---|")
    for name, value in report(answers, seconds, memory):
        print(f"| {name} | {value} |")
    print(f"| one after another in Python, without a server | {alone:.1f} images/s |")
    print(f"| the network alone, in batches of 1 / {BATCH} | {forward[0]:.1f} / {forward[1]:.1f} images/s |")
    if len(answers) < count or any(answer.verdict != "right" for answer in answers):
        raise SystemExit(
            f"Error: {sum(answer.verdict == 'right' for answer in answers)} of {count} answers are right."
        )


if __name__ == "__main__":
    main()

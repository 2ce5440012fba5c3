"""`lvit predict --engine ray` beside the plain loop, and with a node that is killed while it works.

Two nodes of Ray on this machine, each with a raylet, an object store and workers of its own, meet on loopback.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import ray
import ray.data
from load import ROOT, MemoryMeter, make_cases, read_examples
from ray.cluster_utils import Cluster


CPUS = 2  # of each node
# By default Ray lets its workers yield to other programs, and the plain loop does not.
os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def write_images(folder: Path, count: int) -> Path:
    """A table of captioned images, of which one is broken: crops of the examples, of which no two are equal."""
    folder.mkdir()
    lines = ["image,text"]
    for number, case in enumerate(make_cases(read_examples(), count)):
        (folder / case.name).write_bytes(b"no image" if number == 1 else case.content)
        lines.append(f'{case.name},"{case.text}"')
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "table.csv"


def save_small_network(folder: Path) -> str:
    """The network of the tests, for work that is not about the network."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_lvit import tiny_model, tiny_processor

    for part in (tiny_model(), tiny_processor()):
        part.save_pretrained(folder)
    return str(folder)


def start(table: Path, model: str, out: Path, *options: str) -> psutil.Popen:
    command = [sys.executable, "-m", "lvit_cli.main", "predict", str(table), "--model", model, "--out", str(out)]
    return psutil.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(table: Path, model: str, out: Path, *options: str) -> tuple[float, float]:
    """The seconds of a run, and its images per second from the first batch of 8 to the last image."""
    before = time.monotonic()
    start(table, model, out, *options).wait()
    seconds = time.monotonic() - before
    times = sorted(path.stat().st_mtime for path in out.rglob("*_overlay.png"))
    return seconds, (len(times) - 8) / (times[-1] - times[7])


def count_finished(out: Path) -> int:
    return len(list((out / "shards").glob("[0-9]*")))


def kill_node(raylet: int) -> int:
    """Ends a node with SIGKILL, its actors with it; returns the number of these."""
    node = psutil.Process(raylet)
    workers = node.children(recursive=True)
    actors = sum("MapWorker" in " ".join(worker.cmdline()) for worker in workers)
    for process in (node, *workers):
        process.kill()
    return actors


def run_and_kill(table: Path, model: str, out: Path, shards: int, cluster: Cluster, raylet: int) -> list[float]:
    """Kills a node when a third of the shards is finished; returns the memory of the driver in MiB, each second."""
    driver = start(table, model, out, "--engine", "ray", "--address", cluster.address, "--actors", "2")
    meter = MemoryMeter(driver.pid)
    while count_finished(out) < shards // 3 and driver.poll() is None:
        time.sleep(0.05)
    meter.start()
    finished, actors = count_finished(out), kill_node(raylet)
    print(f"| a node with {actors} of 2 actors killed after | {finished} of {shards} shards |", flush=True)
    driver.wait()
    return list(filter(None, meter.stop()))  # the last reading may be of what has ended


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(out: Path, plain: Path) -> str:
    """How many images the plain loop and the cluster tell apart."""
    expected = {row["image"]: row for row in read_rows(plain / "report.jsonl")}
    rows = read_rows(out / "predictions.jsonl")
    counts = Counter(row["image"] for row in rows)
    doubled = sum(count > 1 for count in counts.values())
    different = 0
    for row in rows:
        other = expected[row["image"]]
        its, others = (files.get("masks", []) for files in (row, other))
        contents = [(out / row["folder"] / name).read_bytes() for name in its]
        same = contents == [(plain / name).read_bytes() for name in others] and row.get("error") == other.get("error")
        different += not same
    extra = len(list(out.rglob("*_mask.png"))) - sum(len(row.get("masks", [])) for row in rows)
    return f"{len(expected.keys() - counts)} / {doubled} / {different} / {extra}"


def measure_throughput(folder: Path, count: int, model: str, address: str):
    """Prints what the plain loop, one actor and two do in their time."""
    table = write_images(folder / "images", count)
    engine = ("--engine", "ray", "--address", address, "--actors")
    print(f"| {count} images | seconds | images/s after the start |\n|---|---|---|")
    for what, options in (("plain loop", ()), ("1 actor", (*engine, "1")), ("2 actors", (*engine, "2"))):
        seconds, rate = measure(table, model, folder / what, *options)
        print(f"| {what} | {seconds:.0f} | {rate:.1f} |", flush=True)


def measure_loss(folder: Path, count: int, cluster: Cluster, raylet: int):
    """Prints what becomes of images whose node is killed."""
    table, model = write_images(folder / "many", count), save_small_network(folder / "small")
    plain, out, shards = folder / "plain", folder / "killed", -(-count // 64)
    _, rate = measure(table, model, plain, "--report", str(plain / "report.jsonl"))
    print(f"\n| {count} images, small network | |\n|---|---|\n| plain loop | {rate:.1f} images/s |", flush=True)
    memory = run_and_kill(table, model, out, shards, cluster, raylet)
    print(f"| images lost / doubled / unlike the plain loop's / masks without a row | {compare(out, plain)} |")
    sizes = " / ".join(f"{memory[int((len(memory) - 1) * share)]:.0f}" for share in (0, 0.25, 0.5, 0.75, 1))
    print(f"| driver's memory from then on, at 0 / 25 / 50 / 75 / 100 % of the time | {sizes} MiB |")


class Nothing:
    """An actor whose work takes no time."""

    def __call__(self, batch: dict) -> dict:
        return batch


def measure_driver(count: int, address: str):
    """Prints how many shards a second the driver hands out and takes back."""
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    before = time.monotonic()
    shards = ray.data.from_items([{"shard": bytes(10_000)}] * count, override_num_blocks=count)
    done = shards.map_batches(Nothing, batch_size=1, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1)
    times = [time.monotonic() for _ in done.iter_rows()]
    print(f"\n{count} empty shards of 10 kB: {(count - 1) / (times[-1] - times[0]):.0f} shards/s", flush=True)
    print(f"(the first after {times[0] - before:.0f} s)", flush=True)
    ray.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lvit-small", help="whose throughput is measured")
    parser.add_argument("--images", type=int, default=256, help="for the throughput; 0 leaves it out")
    parser.add_argument(
        "--many", type=int, default=2000, help="with a small network, while a node is killed; 0 likewise"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
        other = cluster.add_node(num_cpus=CPUS)
        try:
            if arguments.images:
                measure_throughput(Path(folder), arguments.images, arguments.model, cluster.address)
            if arguments.many:
                measure_driver(arguments.many, cluster.address)
                measure_loss(Path(folder), arguments.many, cluster, other.all_processes["raylet"][0].process.pid)
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()

"""`lvit predict --engine ray`: shards of images over a cluster, on Ray Data, each done once and as a whole."""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from ..io.errors import as_sentence
from ..io.writing import replacing
from .predictor import Predictor, PredictorConfig
from .report import check_report, write_report
from .shards import Shard


REPORT = "predictions.jsonl"


class ShardFolder:
    """The results of a run: `shards/00000` and so on, with masks and rows, and all rows as one report at the end.

    The folder of a shard appears when all of it is written. Who tries to write it after that writes nothing, so what
    is there is finished, once, whatever became of the machines that worked on it.

    Args:
        path: The folder, the same one on every machine.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self._shards = self.path / "shards"
        self._manifest = self.path / "manifest.json"

    def prepare(self, config: PredictorConfig, run: dict[str, Any], shards: Sequence[Shard]):
        """Writes down what the results are of, or checks that those that are there are of the same.

        Raises:
            FileExistsError: If there is something else.
        """
        images = hashlib.sha256("\n".join(map(repr, shards)).encode()).hexdigest()
        asked = {**run, **asdict(config.outputs), "images": images}
        asked["versions"] = {"lvit_hf": asked["versions"]["lvit_hf"]}
        content = json.dumps(asked, indent=2, ensure_ascii=False) + "\n"
        check_report(self.path / REPORT)
        if not self._manifest.exists():
            if self._shards.exists():
                raise FileExistsError(f"{self._shards} exists and is of no run that has a manifest.json.")
            self._shards.mkdir(parents=True)
            with replacing(self._manifest) as part:
                part.write_text(content, encoding="utf-8")
        if self._manifest.read_text(encoding="utf-8") != content:
            raise FileExistsError(
                f"{self.path} holds results of other images, weights or settings, or of another version, as "
                "its manifest.json says. Give this run another folder."
            )

    def __contains__(self, number: int) -> bool:
        return self._folder(number).is_dir()

    def _folder(self, number: int) -> Path:
        return self._shards / f"{number:05d}"

    def write(self, number: int, shard: Shard, predictor: Predictor) -> list[str]:
        """Segments a shard, unless that is done.

        Returns:
            Sentences about its files that cannot be used.

        Raises:
            ImportError, OSError, ValueError: If its source cannot be read, or it cannot be written.
        """
        folder = self._folder(number)
        entries: list[dict[str, Any]] = []
        try:
            if number not in self:
                with tempfile.TemporaryDirectory() as inputs, replacing(folder) as part:
                    part.mkdir()
                    for entry in predictor.predict(shard.open(Path(inputs)), part, set()):
                        entries.append({**entry, "folder": folder.relative_to(self.path).as_posix()})
                    write_report(part / REPORT, predictor.run, entries)
        except OSError:
            if number not in self:  # else another machine was faster
                raise
        return [entry["error"] for entry in entries if "error" in entry]

    def join(self, count: int) -> Path:
        """Writes the rows of all finished shards of so many, in their order, as one report; returns its path."""
        with replacing(self.path / REPORT) as part, part.open("wb") as report:
            for number in filter(self.__contains__, range(count)):
                with (self._folder(number) / REPORT).open("rb") as rows:
                    shutil.copyfileobj(rows, report)
        if all(map(self.__contains__, range(count))):
            for rest in self._shards.glob(".*.part"):  # of machines that were lost
                shutil.rmtree(rest, ignore_errors=True)
        return self.path / REPORT


class ShardWriter:
    """An actor: its checkpoint is loaded once, and then come shards."""

    def __init__(self, config: PredictorConfig, path: Path, shards: Sequence[ray.ObjectRef]):
        self._predictor, self._folder, self._shards = Predictor(config), ShardFolder(path), shards

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        [number] = batch["shard"].tolist()
        try:
            errors = self._folder.write(number, ray.get(self._shards[number]), self._predictor)
        except (ImportError, OSError, ValueError) as error:
            errors = [f"Shard {number} is left out: {as_sentence(error, extra='scale')}"]
        return {"errors": ["\n".join(errors)]}


def predict_shards(
    config: PredictorConfig,
    shards: Sequence[Shard],
    folder: ShardFolder,
    address: str = "local",
    actors: int | None = None,
) -> Iterator[list[str]]:
    """Segments shards that are not finished yet.

    Args:
        config: What is asked for.
        shards: The shards; a shard's number is its place.
        folder: Where the results go.
        address: Of a cluster that runs; `"auto"` for the one of this machine, `"local"` to start one here.
        actors: Number of actors, each with one CPU and, where there are GPUs, with one or its share of one. By default
            as many as there are GPUs, or else CPUs.

    Returns:
        For each shard, as it ends, the sentences about what could not be used, or why it could not be done.

    Raises:
        ConnectionError: If there is no cluster at the address.
    """
    rows = [{"shard": number} for number in range(len(shards)) if number not in folder]
    if not rows:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports its use to its makers
    ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = actors or gpus or int(resources["CPU"])
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWriter,
        fn_constructor_args=(config, folder.path, list(map(ray.put, shards))),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 / math.ceil(actors / gpus) if gpus else None,
    )
    for row in done.iter_rows():
        yield row["errors"].splitlines()

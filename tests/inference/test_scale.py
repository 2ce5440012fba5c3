"""Many images over a cluster: every one once, as the plain loop has it, whatever was finished or lost before."""

import io
import json
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import ray
from PIL import Image
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.inference import shards as sources
from lvit_hf.inference.files import Outputs
from lvit_hf.inference.predictor import Predictor, PredictorConfig
from lvit_hf.inference.scale import ShardFolder, ShardWriter
from lvit_hf.inference.shards import FileShard, ParquetShard, UrlShard, list_shards


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)).save(content, "png")
    return content.getvalue()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sources, "SHARD_FILES", 2)


@pytest.fixture
def images(tmp_path) -> Path:
    """A table, and five images, of which one is broken and two have one name."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/3.png", "b/4.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image" if name == "b/3.png" else png(number))
    (folder / "table.csv").write_text(
        'image,text\na/1.png,"two areas, left lung"\nb/1.png,one area\na/2.png,\nb/3.png,\nb/4.png,\n'
    )
    return folder


@pytest.fixture
def config(checkpoint) -> PredictorConfig:
    settings = {"tile_size": None, "views": None, "side": "image", "on_unknown": "ignore"}
    return PredictorConfig(str(checkpoint), "auto", Outputs(), 2, settings)


@pytest.fixture
def predictor(config) -> Predictor:
    return Predictor(config)


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    yield
    ray.shutdown()


def test_masks_and_rows_are_those_of_the_plain_loop_and_what_is_finished_stays(
    one_worker, images, checkpoint, config, predictor, tmp_path
):
    arguments = (images / "table.csv", "--model", checkpoint, "--batch-size", 2)
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert predict(*arguments, "--out", plain, "--report", plain / "report.jsonl").exit_code == 1
    shards, folder = list_shards([str(images / "table.csv")], None), ShardFolder(out)
    folder.prepare(config, predictor.run, shards)
    folder.write(1, shards[1], predictor)
    (out / "shards" / "00001" / "of the first run").touch()
    result = predict(*arguments, "--out", out, "--engine", "ray", "--actors", 1)
    assert result.exit_code == 1, result.output  # of the broken image, which the first run told of
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"  # Ray tells its makers nothing
    assert (out / "shards" / "00001" / "of the first run").exists()
    expected, rows = read_rows(plain / "report.jsonl"), read_rows(out / "predictions.jsonl")
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert "3.png" in rows[3]["error"] and len(list(out.rglob("*_mask.png"))) == 4
    for row, other in zip(rows, expected):
        for name in (*row.get("masks", ()), *filter(None, [row.get("overlay")])):
            assert (out / row["folder"] / name).read_bytes() == (plain / name).read_bytes()
        row["seconds"] = other["seconds"]
        assert row == {**other, "folder": row["folder"]}
    lost = [FileShard(()), ParquetShard(f"file://{tmp_path}/gone.parquet", 0, 0, None), shards[1]]
    writer = ShardWriter(config, tmp_path / "other", list(map(ray.put, lost)))
    ShardFolder(tmp_path / "other").prepare(config, predictor.run, lost)
    errors = [writer({"shard": np.array([number])})["errors"] for number in range(3)]
    assert errors[0] == [""] and errors[2] == [rows[3]["error"]]
    assert errors[1][0].startswith("Shard 1 is left out: ") and "gone.parquet" in errors[1][0]
    assert [path.name for path in sorted((tmp_path / "other" / "shards").iterdir())] == ["00000", "00002"]


def test_a_star_in_an_address_is_a_part_of_the_name(tmp_path):
    for name in ("a*.png", "a!.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "fetched").mkdir()
    [item] = UrlShard((f"file://{tmp_path}/a*.png",), ("a caption",)).open(tmp_path / "fetched")
    assert (item.path.read_bytes(), item.text) == (b"a*.png", "a caption")


def test_a_shard_is_written_once_and_as_a_whole(images, config, predictor, tmp_path):
    shards, folder = list_shards([str(images)], None), ShardFolder(tmp_path / "out")
    folder.prepare(config, predictor.run, shards)

    class Lost(Exception):
        pass

    class Failing:
        run = predictor.run

        def predict(self, items, part, taken):
            yield from list(predictor.predict(items, part, taken))[:1]
            raise Lost

    with pytest.raises(Lost):
        folder.write(0, shards[0], Failing())
    assert 0 not in folder
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: folder.write(0, shards[0], predictor), range(2)))
    assert [path.name for path in (folder.path / "shards").iterdir()] == ["00000"]
    assert sum(len(shard.items) for shard in list_shards([str(tmp_path)], None)) == 5  # and no mask of the first shard
    (folder.path / "shards" / ".00001.lost.part").mkdir()
    folder.join(len(shards))
    assert (folder.path / "shards" / ".00001.lost.part").is_dir()  # somebody may be at work on it yet
    for number in (1, 2):
        folder.write(number, shards[number], predictor)
    rows = read_rows(folder.join(len(shards)))
    assert len(rows) == len({row["image"] for row in rows}) == 5
    assert sorted(path.name for path in (folder.path / "shards").iterdir()) == ["00000", "00001", "00002"]


def test_what_cannot_be_written_is_not_passed_over(images, config, predictor, tmp_path):
    shards, folder = list_shards([str(images)], None), ShardFolder(tmp_path / "out")
    folder.prepare(config, predictor.run, shards)
    [error] = folder.write(1, shards[1], predictor)
    assert "3.png" in error and folder.write(1, shards[1], predictor) == []  # it is done
    (folder.path / "shards").rename(folder.path / "away")
    with pytest.raises(OSError):
        folder.write(0, shards[0], predictor)


def test_a_folder_holds_one_run(images, config, predictor, tmp_path):
    shards, folder = list_shards([str(images)], None), ShardFolder(tmp_path / "out")
    versions = predictor.run["versions"]
    for run in (predictor.run, {**predictor.run, "versions": {**versions, "torch": "of another machine"}}):
        folder.prepare(config, run, shards)
    for other in (
        (config, predictor.run, shards[:1]),
        (replace(config, outputs=Outputs(labels=True)), predictor.run, shards),
        (config, {**predictor.run, "side": "patient"}, shards),
        (config, {**predictor.run, "backend": "openvino-bf16"}, shards),
        (config, {**predictor.run, "versions": {**versions, "lvit_hf": "0"}}, shards),
    ):
        with pytest.raises(FileExistsError, match="other images, weights or settings"):
            folder.prepare(*other)
    (tmp_path / "mine" / "shards").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is of no run"):
        ShardFolder(tmp_path / "mine").prepare(config, predictor.run, shards)


def test_other_machines_find_files_that_are_named_from_here(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    [shard] = list_shards([f"{images.name}/a"], None)
    assert [item.path for item in shard.items] == [images / "a" / "1.png", images / "a" / "2.png"]


def read_all(source: str, folder: Path, text: str | None = None) -> list[tuple[str, str | None, bytes | str | None]]:
    """The name, the caption and the content or the problem of each image."""
    found = []
    for number, shard in enumerate(list_shards([source], text)):
        part = folder / f"read-{number}"
        part.mkdir(exist_ok=True)
        found += [(item.name, item.text, item.problem or item.path.read_bytes()) for item in shard.open(part)]
    return found


def test_urls_of_folders_and_of_tables(images, tmp_path):
    url = f"file://{images}"
    (images / "b" / "captions.txt").write_text("no image")
    names = ("a/1.png", "a/2.png", "b/1.png", "b/3.png", "b/4.png")
    assert read_all(url, tmp_path, "one") == [(f"{url}/{name}", "one", (images / name).read_bytes()) for name in names]
    os.remove(images / "a" / "2.png")
    rows = read_all(f"{url}/table.csv", tmp_path, "one")
    assert [row[1] for row in rows] == ["two areas, left lung", "one area", "one", "one", "one"]
    assert rows[1][2] == png(2) and f"{images}/a/2.png" in rows[2][2] and isinstance(rows[2][2], str)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_parquet_with_images(tmp_path, scheme):
    path = tmp_path / "data.parquet"
    values = [{"bytes": png(number), "path": f"{number}.png" if number else None} for number in range(3)]
    table = pyarrow.table({"image": [*values, None], "text": ["one", None, "", "two"], "mask": [b"x"] * 4})
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    rows = read_all(f"{scheme}{path}", tmp_path, "all")
    url = f"file://{path}"
    assert rows[:3] == [(f"{url}/0", "one", png(0)), (f"{url}/1.png", "all", png(1)), (f"{url}/2.png", "all", png(2))]
    assert rows[3][:2] == (f"{url}/3", "two") and "no image" in rows[3][2]
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(0), b"", png(1)]}), path, row_group_size=2)
    first, empty, last = read_all(f"{scheme}{path}", tmp_path, "all")
    assert (first, last) == ((f"{url}/0", "all", png(0)), (f"{url}/2", "all", png(1)))
    assert empty == (f"{url}/1", "all", f"{url}/1 has no image in its row.")
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b"x"]}), path)
    with pytest.raises(ValueError, match="needs a column image; it has picture"):
        list_shards([str(path)], None)
    path.write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=r"data\.parquet cannot be read"):
        list_shards([str(path)], None)


def test_tars_of_images_and_captions(tmp_path):
    path = tmp_path / "data.tar"
    members = {"../a.png": png(0), "../a.txt": b"one area\n", "x/b.png": png(1), "x/b.json": b"{}", "x/.c.png": b""}
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    url = f"file://{path}"
    for text in (None, "all"):  # a sample's own caption comes first
        rows = [(f"{url}/../a.png", "one area", png(0)), (f"{url}/x/b.png", text, png(1))]
        assert read_all(str(path), tmp_path, text) == rows
    assert not (tmp_path.parent / "a.png").exists()
    path.write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"data\.tar cannot be read"):
        read_all(str(path), tmp_path)


def test_the_samples_of_a_tar_have_each_its_own_caption(tmp_path):
    """A sample is what its folder and the first part of its name say."""
    path = tmp_path / "data.tar"
    members = {"x/a.png": png(0), "x/a.txt": b"x", "y/a.left.png": png(1), "y/a.right.png": png(2), "y/a.txt": b"y"}
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    found = {Path(name).name: text for name, text, _ in read_all(str(path), tmp_path)}
    assert found == {"a.png": "x", "a.left.png": "y", "a.right.png": "y"}


def test_without_the_engine_nothing_of_ray_is_imported(images, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # which makes its import fail
    monkeypatch.delitem(sys.modules, "lvit_hf.inference.scale")
    arguments = (images / "a", "--model", checkpoint, "--out", tmp_path / "out")
    assert predict(*arguments).exit_code == 0
    result = predict(*arguments, "--engine", "ray")
    assert result.exit_code == 2 and "needs pip install 'lvit_hf[scale]'" in result.stderr


@pytest.mark.parametrize("options", [("--actors", 2), ("--engine", "ray", "--report", "report.csv")])
def test_options_that_do_not_fit_are_refused(images, checkpoint, tmp_path, options):
    result = predict(images / "a", "--model", checkpoint, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and not (tmp_path / "out").exists()


def test_a_source_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), f"file://{tmp_path}/empty", f"file://{tmp_path}/missing"):
        with pytest.raises(ValueError, match="There is no image"):
            list_shards([source], None)


def test_what_is_left_out_by_its_name_is_named(tmp_path, caplog):
    """At a URL no file is looked into."""
    names = ["a.png", "b.JPG", "c.dcm", "d.IMA", "e.nii.gz", "f.dicom"]
    for name in (*names, "IM000001", "notes.txt"):
        (tmp_path / name).touch()
    shards = list_shards([f"file://{tmp_path}"], None)
    assert [Path(url).name for shard in shards for url in shard.urls] == names
    [said] = caplog.messages
    assert said.startswith("Left out, since their names are not those of images: ")
    assert "IM000001" in said and "notes.txt" in said and "a.png" not in said

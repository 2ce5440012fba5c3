"""A mask that is corrected on the page becomes training data, and the network learns from it."""

import base64
import json
import re
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import anyio
import datasets
import nibabel
import numpy as np
import pytest
from app_page import expect_drawn, open_page, serve, upload, wait_for_result
from axe_playwright_python.sync_playwright import Axe
from chromium import PHONE
from gradio.utils import get_upload_folder
from PIL import Image
from playwright.sync_api import Page, expect
from squares import make_rows
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.data.check import check_data, has_problems, read_all_splits
from lvit_hf.data.load import load_data
from lvit_hf.demo import build_demo
from lvit_hf.demo.corrections import decode_mask
from lvit_hf.demo.engine import Engine
from lvit_hf.demo.viewer import Answers
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.readers import read_scan


CAPTION = "one infected area, upper left lung"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def uploads():
    """A folder of files as visitors have uploaded them."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=get_upload_folder()) as folder:
        yield Path(folder)


def pack(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(mask.astype(np.uint8).tobytes())).decode()


def unpack(answer: dict) -> np.ndarray:
    sent = answer["mask"]
    return decode_mask(sent["data"], (sent["height"], sent["width"]))


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_what_is_corrected_and_kept_is_learned(uploads, tmp_path):
    checkpoint, kept = tmp_path / "checkpoint", tmp_path / "kept"
    tiny_model(hidden_dropout_prob=0.0).save_pretrained(checkpoint)
    tiny_processor().save_pretrained(checkpoint)
    answers = Answers(Engine(Segmenter.from_pretrained(checkpoint), "mine"), kept)
    mistakes = []
    for split, count in (("train", 10), ("valid", 4)):
        for number, row in enumerate(make_rows(count, seed=count)):
            path = uploads / f"{split} {number}.png"
            row["image"].save(path)
            payload = {"files": [str(path)], "text": row["text"], "threshold": 0.5}
            truth = np.asarray(row["mask"]) > 0
            said = unpack(anyio.run(answers.mask, payload))
            answer = anyio.run(answers.keep, {**payload, "split": split, "mask": pack(truth)})
            assert answer["dice"] == pytest.approx(overlap(said, truth)) and answer[split] == number + 1
            mistakes.append((payload, truth, answer["dice"]))
    report = check_data(str(kept), read_all_splits(str(kept)), tiny_processor(), 10)
    assert not has_problems(report) and not report["orphans"]
    options = ["--steps", "60", "training.learning_rate=0.01", "training.report_to=none", "training.disable_tqdm=true"]
    command = ["finetune", str(kept), "--out", str(tmp_path / "run"), "--model", str(checkpoint), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "better" in result.output, result.output
    better = Answers(Engine(Segmenter.from_pretrained(tmp_path / "run" / "best"), "better"), kept)
    for payload, truth, before in mistakes:
        after = overlap(unpack(anyio.run(better.mask, payload)), truth)
        assert before < 0.5 < 0.9 < after


def test_the_shown_slice_of_a_volume_is_kept_as_the_network_saw_it(segmenter, uploads, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1500, (20, 24, 5)).astype(np.int16)
    path = uploads / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 2, 2, 1])), path)
    answers = Answers(Engine(segmenter, "mine"), tmp_path / "kept")
    payload = {"files": [str(path)], "text": CAPTION, "side": "patient", "threshold": 0.4}
    for split, whole in (("train", False), ("valid", True)):
        one = {**payload, "all": whole, "slice": 3, "split": split}
        mask = unpack(anyio.run(answers.mask, one))
        mask[:5] = ~mask[:5]
        anyio.run(answers.keep, {**one, "mask": pack(mask)})
        [row] = load_data(str(tmp_path / "kept"), split)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(read_scan(path).image(3)))
        np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, mask)
        assert row["text"] == "one infected area, upper right lung"  # of the image, as data sets have it
        assert (row["model"], row["threshold"]) == ("mine", "0.4")
        assert row["id"].startswith("images/scan-slice-4-")


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (None, "cannot be read"),
        ("...", "cannot be read"),
        (base64.b64encode(b"no zlib").decode(), "cannot be read"),
        (pack(np.zeros((30, 41))), "must have 40 x 30 pixels"),
        (pack(np.zeros((3000, 4000))), "must have 40 x 30 pixels"),
        (pack(np.full((30, 40), 2)), "pixels of 0 or 1"),
        (pack(np.zeros((30, 40)))[:-8], "must have|cannot be read"),
    ],
)
def test_no_mask_of_a_browser_is_believed(segmenter, uploads, tmp_path, sent, problem):
    path = uploads / "scan.png"
    Image.new("L", (40, 30)).save(path)
    answers = Answers(Engine(segmenter, "mine"), tmp_path / "kept")
    payload = {"files": [str(path)], "text": "", "threshold": 0.5, "split": "train", "mask": sent}
    assert re.search(problem, anyio.run(answers.keep, payload)["error"]["en"])
    assert not (tmp_path / "kept").exists()
    bad = {**payload, "mask": pack(np.zeros((30, 40))), "split": "../train"}
    assert "split must be one of" in json.dumps(anyio.run(answers.keep, bad))


def test_a_mask_that_would_fill_the_memory_is_not_unpacked():
    sent = pack(np.zeros((4000, 5000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="must have 40 x 30 pixels"):
        decode_mask(sent, (30, 40))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_masks_of_several_labels_are_not_kept_as_one(uploads, tmp_path):
    path = uploads / "scan.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    for labels, message in ((["background", "polyp"], ""), (["background", "polyp", "tool"], "several labels")):
        segmenter = Segmenter(tiny_model(id2label=dict(enumerate(labels))), tiny_processor())
        answers = Answers(Engine(segmenter, "mine"), tmp_path / "kept")
        payload = {"files": [str(path)], "text": "", "threshold": 0.5, "split": "train"}
        answer = anyio.run(answers.keep, {**payload, "mask": pack(np.zeros((30, 40)))})
        assert message in json.dumps(answer) and ("error" in answer) == bool(message)
    assert len(load_data(str(tmp_path / "kept"), "train")) == 1


def test_a_page_that_others_reach_keeps_nothing(segmenter, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds other files"):
        build_demo(segmenter, keep=Path(__file__).parent)
    for name, value in (("SPACE_ID", "user/space"), ("GRADIO_SERVER_NAME", "0.0.0.0")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            with pytest.raises(ValueError, match="--keep writes images to the disk of whoever runs the page"):
                build_demo(segmenter, keep=tmp_path / "kept")
            result = CliRunner().invoke(app, ["demo", "--keep", str(tmp_path / "kept")])
            assert result.exit_code == 1 and result.stderr.startswith("Error: --keep writes")
    assert not (tmp_path / "kept").exists()


def drag(page: Page, *points: tuple[float, float]):
    """Draws with the mouse, through points given as shares of the stage."""
    box = page.locator("canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def count_kept(page: Page, count: int, split: str = "training"):
    expect(page.locator(".kept")).to_have_text(re.compile(rf"\b{count} for {split}"))


def test_masks_are_painted_undone_and_kept_one_after_the_other(browser, segmenter, files, tmp_path):
    folder = tmp_path / "kept"
    with serve(segmenter, keep=folder) as url, open_page(browser, url) as page:
        upload(page, files / "picture.png", files / "other.png")
        page.get_by_role("button", name="picture.png").click()
        wait_for_result(page, "picture.png")
        [result] = segmenter.segment([Image.open(files / "picture.png")])
        said = result.mask(0.5)
        page.get_by_role("button", name="Correct the mask").click()
        expect(page.locator(".agreement")).to_have_text("Dice with the model’s mask: 1.0000")
        page.get_by_role("slider", name="Size").fill("40")
        page.get_by_text("Eraser", exact=True).click()
        drag(page, (0.3, 0.2), (0.5, 0.8), (0.7, 0.2))
        expect(page.locator(".agreement")).not_to_have_text(re.compile("1.0000"))
        page.get_by_role("button", name="Undo").click()
        expect_drawn(page, int(said.sum()))
        expect(page.get_by_role("button", name="Undo")).to_be_disabled()
        page.get_by_text("Brush", exact=True).click()
        drag(page, (0.4, 0.5), (0.6, 0.5))
        page.get_by_role("button", name="Keep for training").click()
        count_kept(page, 1)
        [row] = load_data(str(folder), "train")
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"]) > 0
        np.testing.assert_array_equal(image, np.asarray(Image.open(files / "picture.png")))
        assert mask[30, 40:50].all() and mask[said].all() and mask.sum() > said.sum()
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["predicted"])) > 0, said)
        expect(page.locator(".agreement")).to_have_text(f"Dice with the model’s mask: {overlap(mask, said):.4f}")
        expect_drawn(page, int(mask.sum()))

        page.get_by_role("button", name="Done").click()
        page.get_by_role("slider", name="Threshold").fill("40")
        page.get_by_role("button", name="Correct the mask").click()
        expect(page.locator(".agreement")).to_be_visible()
        expect(page.locator(".kept")).to_have_text("")  # another mask, which is not kept
        page.get_by_role("button", name="Done").click()
        page.get_by_role("slider", name="Threshold").fill("50")
        page.get_by_role("button", name="Correct the mask").click()

        page.get_by_role("button", name="other.png").click()
        wait_for_result(page, "other.png")
        expect(page.locator(".many")).to_contain_text("✓ picture.png")
        expect(page.locator(".agreement")).to_have_text("Dice with the model’s mask: 1.0000")
        for key in ("ArrowRight", "Space", "E", "[", "Shift+ArrowLeft", "Space"):
            page.locator("canvas").press(key)
        painted = page.locator(".agreement").inner_text()
        page.locator("canvas").press("Control+z")
        expect(page.locator(".agreement")).not_to_have_text(painted)
        page.get_by_role("button", name="Reset").click()
        expect(page.locator(".agreement")).to_have_text("Dice with the model’s mask: 1.0000")
        page.get_by_role("button", name="Keep for validation").click()
        count_kept(page, 1, "validation")
        page.get_by_role("button", name="✓ picture.png").click()
        wait_for_result(page, "picture.png")
        expect_drawn(page, int(mask.sum()))
        page.get_by_role("button", name="Done").click()
        expect(page.locator(".facts")).to_be_visible()
    assert len(load_data(str(folder), "train")) == len(load_data(str(folder), "valid")) == 1


@pytest.mark.parametrize("settings", [{}, {**PHONE, "locale": "zh-CN"}], ids=["desktop", "phone, dark and Chinese"])
def test_the_brush_is_accessible(browser, segmenter, tmp_path, settings):
    with serve(segmenter, keep=tmp_path / "kept") as url, open_page(browser, url, **settings) as page:
        page.locator(".correct").click()
        drag(page, (0.4, 0.5), (0.6, 0.5))
        page.locator(".keep").first.click()
        page.locator(".kept:not(:empty)").wait_for()
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()


def test_two_fingers_zoom_and_paint_nothing(browser, segmenter, tmp_path):
    settings = {**PHONE, "has_touch": True}
    with serve(segmenter, keep=tmp_path / "kept") as url, open_page(browser, url, **settings) as page:
        page.locator(".correct").tap()
        page.locator(".correcting").wait_for()
        box = page.locator("canvas").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = page.context.new_cdp_session(page)

        def send(kind: str, *fingers: tuple[float, float]):
            points = [{"x": left, "y": top, "id": number} for number, (left, top) in enumerate(fingers)]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        send("touchStart", (x, y))
        send("touchMove", (x + 20, y))
        send("touchStart", (x + 20, y), (x + 30, y))
        send("touchMove", (x - 20, y), (x + 80, y))
        send("touchEnd")
        expect(page.locator(".agreement")).to_contain_text("1.0000")
        expect(page.locator(".stage")).to_have_class(re.compile("zoomed"))
        for tool in ("Brush", "Eraser"):  # one of them finds something to change
            page.get_by_text(tool, exact=True).click()
            send("touchStart", (x, y))
            send("touchMove", (x + 60, y + 60))
            send("touchEnd")
        expect(page.locator(".undo")).to_be_enabled()

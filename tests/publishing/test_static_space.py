"""The static Space of the shipped checkpoint in a browser: what it draws beside Python, and what it asks for."""

import csv
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import DESKTOP, PHONE, TIMEOUT, launch_browser
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect
from static_page import (
    Site,
    give,
    need_packages,
    open_static,
    read_area,
    read_fact,
    save_mask,
    serve_folder,
    wait_for_mask,
    wait_until_ready,
)
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.data.load import load_data, take_evenly
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT, EXAMPLES_FOLDER, SHIPPED_FOLDER
from lvit_hf.publishing.npm import PACKAGES, copy_packages
from lvit_hf.publishing.static_space import _check, _cut_middle


DATA = Path(os.environ.get("LVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHEST, SLIDE = EXAMPLES_FOLDER / "chest-xray.jpg", EXAMPLES_FOLDER / "slide-he-2.jpg"
CHEST_CAPTION = "unilateral pulmonary infection, one infected area, middle lower left lung."
POLYP = "One small,circular,smooth colonic polyp on the bottom right."
FIRST_VISIT = 40_000_000  # bytes

WAIT_FOR_UPDATE = """async ([waits, timeout]) => {
  const end = Date.now() + timeout;
  const registration = await navigator.serviceWorker.getRegistration("space/");
  while (Boolean(registration.waiting) !== waits && Date.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return Boolean(registration.waiting) === waits;
}"""

# What a tokenizer may stumble over.
ODD_CAPTIONS = [
    "a",
    "Ground-glass opacities (GGO), left > right; 50 %!",
    "naïve façade in the Größe of İstanbul",
    "左肺下叶一处感染 and more",
    "tab\tand\u00a0spaces \u2028 in \u200b between \x07 \ufffd",
    "[SEP] a [MASK] and [UNK] polyp",
    "##ing # # polyp##s",
    "🫁 lung 👩\u200d⚕️",
    "x" * 101 + " polyp",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "one large polyp " * 200,
]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """The folder that the command writes."""
    need_packages(tmp_path_factory.mktemp("packages"))
    folder = tmp_path_factory.mktemp("static") / "space"
    result = CliRunner().invoke(app, ["push-space", "--static", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert "settings.json" in result.output
    return folder


@pytest.fixture(scope="module")
def site(space) -> Iterator[Site]:
    with serve_folder(space) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, site) -> Iterator[Page]:
    """A page that a visitor uses for one image after another."""
    with open_static(browser, site.url) as page:
        yield page


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained(DEFAULT_CHECKPOINT, backend="torch")


def list_images(folder: Path) -> list[tuple[Path, str]]:
    """Ten image files with their captions: eight of validation images, if they are at hand, and examples."""
    pairs = [(CHEST, CHEST_CAPTION), (SLIDE, "The nuclei are evenly distributed.")]
    for name in ("qata_cov19", "kvasir_seg") if DATA.is_dir() else ():
        for row in take_evenly(load_data(str(DATA / name), "valid"), 4):
            path = folder / f"{row['id']}.jpg"
            row["image"].save(path, quality=95)
            pairs.append((path, row["text"]))
    return pairs


def rewrite(file: Path, pattern: str, replacement: str):
    text, count = re.subn(pattern, replacement, file.read_text(encoding="utf-8"))
    assert count == 1
    later = file.stat().st_mtime + 10  # the server tells versions apart by the second
    file.write_text(text, encoding="utf-8")
    os.utime(file, (later, later))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    total = first.sum() + second.sum()
    return 2 * (first & second).sum() / total if total else 1.0


def test_masks_are_those_of_python(page, segmenter, tmp_path):
    pairs = list_images(tmp_path)
    paths, texts = zip(*(pair for path, text in pairs for pair in ((path, text), (path, ""))))
    expected = [result.mask() for result in segmenter.segment(paths, texts, describe=False)]
    assert len({mask.sum() for mask in expected}) > len(pairs)  # captions change masks
    for path, text, mask in zip(paths, texts, expected):
        give(page, path, text)
        drawn = save_mask(page)
        assert drawn.shape == mask.shape
        assert dice(drawn, mask) >= 0.99, (path, text)
        assert read_area(page) == drawn.sum()
        assert ("used" in read_fact(page, "Caption")) == bool(text)


def test_tokens_are_those_of_python(page, segmenter):
    with (Path(__file__).parents[1] / "captions" / "meanings.csv").open(newline="", encoding="utf-8") as table:
        texts = [row["text"] for row in csv.DictReader(table)] + ODD_CAPTIONS
    found = page.evaluate(
        """async (texts) => {
            const { openTokenizer, tokenize } = await import(new URL("tokens.js", location));
            const { longest } = await (await fetch("settings.json")).json();
            const tokenizer = await openTokenizer();
            return texts.map((text) => tokenize(tokenizer, text, longest));
        }""",
        texts,
    )
    for text, tokens in zip(texts, found):
        expected = segmenter.processor(text=[text])
        assert tokens["ids"] == expected["input_ids"][0], text
        assert tokens["wordIds"] == expected["word_ids"][0], text


@pytest.mark.parametrize("size", [(90, 130), (40, 24)], ids=["shrunk", "enlarged"])
def test_pixels_are_those_of_pillow(page, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    found = page.evaluate(
        """async ([bytes, from, to]) => {
            const { resizePixels } = await import(new URL("image.js", location));
            return [...resizePixels(bytes, from, to)];
        }""",
        [list(image.convert("RGBA").tobytes()), size, (64, 80)],
    )
    expected = np.asarray(image.resize((80, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.reshape(found, (3, 64, 80)), np.moveaxis(expected, -1, 0))


def test_a_long_caption_is_said_to_be_cut(page):
    give(page, CHEST, 3 * CHEST_CAPTION)
    assert read_fact(page, "Caption") == "its first 24 of 39 words and signs were used, as they are written"


def test_nothing_leaves_the_origin_and_nothing_is_asked_once_all_is_loaded(browser, site):
    """Every request of the page and its threads goes through the route, for there is no service worker."""
    context = browser.new_context(**DESKTOP, service_workers="block")
    requests: list[str] = []

    def note(route):
        requests.append(route.request.url)
        route.continue_()

    context.route("**/*", note)
    page = context.new_page()
    page.goto(site.url)
    give(page, CHEST, CHEST_CAPTION)  # before the network is there
    assert {f"{site.url}{name}" for name in ("network.onnx", "text_model.onnx", "worker.js")} <= set(requests)
    assert all(url.startswith(site.url) for url in requests)
    requests.clear()
    give(page, SLIDE, "The nuclei are sparsely distributed.")
    give(page, CHEST)
    save_mask(page)
    assert requests == []
    context.close()


def test_the_page_cannot_ask_another_host(browser, site, tmp_path):
    page = browser.new_page()
    page.goto(site.url)
    with serve_folder(tmp_path) as other:
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate("url => fetch(url, { mode: 'no-cors' })", other.url)
        assert other.asked == []
    page.close()


def test_the_first_visit_loads_less_than_40_megabytes_and_the_next_one_works_offline(browser, space):
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    with serve_folder(space) as site:
        page.goto(site.url)
        wait_until_ready(page)
        assert site.asked.count("/network.onnx") == 1 and "/text_model.onnx" not in site.asked
        assert sum((space / path.lstrip("/")).stat().st_size for path in site.asked if path != "/") < FIRST_VISIT
        give(page, CHEST, CHEST_CAPTION)
        mask = save_mask(page)
    page.goto(f"{site.url}?from=elsewhere")  # the server is gone
    wait_until_ready(page)
    give(page, CHEST, CHEST_CAPTION)
    np.testing.assert_array_equal(save_mask(page), mask)
    context.close()


def test_a_newer_space_takes_the_place_of_the_older_when_the_page_was_closed(browser, space, tmp_path):
    folder = Path(shutil.copytree(space, tmp_path / "space", ignore=shutil.ignore_patterns("*.onnx")))
    (tmp_path / "watch.html").touch()  # outside the Space: it keeps no worker in place
    context = browser.new_context()
    watcher = context.new_page()

    with serve_folder(tmp_path) as site:
        watcher.goto(f"{site.url}watch.html")

        def read_title(*, waits: bool) -> str:
            page = context.new_page()
            page.goto(f"{site.url}space/")
            page.evaluate("navigator.serviceWorker.ready.then(() => null)")
            assert watcher.evaluate(WAIT_FOR_UPDATE, [waits, TIMEOUT])
            title = page.title()
            page.close()
            return title

        old = read_title(waits=False)
        rewrite(folder / "index.html", "<title>.*</title>", "<title>Newer</title>")
        rewrite(folder / "sw.js", 'lvit-browser-[0-9a-f]{16}"', 'lvit-browser-0"')
        assert read_title(waits=True) == old
        assert watcher.evaluate(WAIT_FOR_UPDATE, [False, TIMEOUT])
        assert read_title(waits=False) == "Newer"
    context.close()


def test_a_visitor_tries_an_example_and_moves_the_sliders(page, space, segmenter):
    example = page.get_by_role("button", name="Example: The nuclei are evenly distributed.")
    example.click()
    wait_for_mask(page)
    expect(page.locator("#caption")).to_have_value("The nuclei are evenly distributed.")
    with Image.open(space / "examples" / "slide-he.png") as tile:
        assert tile.size == save_mask(page).shape[::-1] == (96, 96)
    [expected] = segmenter.segment([space / "examples" / "slide-he.png"], describe=False)
    kind = f"like the images of {expected.scope.kind}" if expected.scope.in_scope else "unlike all"
    assert read_fact(page, "Image").startswith(kind)
    areas = []
    for threshold in ("0.3", "0.5", "0.7"):
        page.get_by_label("Threshold").fill(threshold)
        areas.append(read_area(page))
        assert areas[-1] == save_mask(page).sum()
    assert areas == sorted(areas, reverse=True) and len(set(areas)) == 3
    page.get_by_label("Threshold").fill("0.5")
    page.get_by_label("Opacity").fill("0.2")
    expect(page.locator("#mask")).to_have_css("opacity", "0.2")


def test_it_is_used_by_keyboard(page):
    give(page, CHEST)
    without = read_area(page)
    page.keyboard.press("Tab")
    page.get_by_label("Caption").focus()
    page.keyboard.type(CHEST_CAPTION)
    page.keyboard.press("Enter")
    wait_for_mask(page)
    assert read_area(page) != without
    expect(page.get_by_role("img", name=f"{read_area(page)} pixels")).to_be_visible()


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone, dark"])
def test_it_is_accessible(page, screen):
    page.set_viewport_size(screen["viewport"])
    page.emulate_media(color_scheme=screen.get("color_scheme"))
    give(page, CHEST, CHEST_CAPTION)
    violations = Axe().run(page).response["violations"]
    assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["viewport"]["width"]


def test_a_file_that_cannot_be_used_is_said_so(page, tmp_path):
    Image.fromarray(np.linspace(0, 60_000, 6000).astype(np.uint16).reshape(60, 100)).save(tmp_path / "deep.png")
    (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    for name, sentence in (("deep.png", "has 16 bits a channel"), ("scan.dcm", "is no image that a browser can read")):
        page.locator("#file").set_input_files(tmp_path / name)
        expect(page.get_by_role("alert")).to_contain_text(f"{name} {sentence}")
        expect(page.locator("#save")).to_be_disabled()


# The command


def error_of(*arguments) -> str:
    result = CliRunner().invoke(app, ["push-space", "--static", *map(str, arguments)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return result.output


def test_what_the_command_cannot_do_is_said_in_a_sentence(tmp_path):
    assert "--repo-id, or a folder for its files with --out" in error_of()
    assert "--repo-id, or a folder for its files with --out" in error_of("--repo-id", "a/b", "--out", tmp_path)
    (tmp_path / "file").touch()
    assert "is not empty" in error_of("--out", tmp_path)
    out = tmp_path / "out"
    assert "segments images" in error_of("--out", out, "--model", SHIPPED_FOLDER / "lvit-small-hippocampus")
    assert "is not an LViT checkpoint" in error_of("--out", out, "--model", tmp_path)
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_processor(do_flip_channel_order=True).save_pretrained(tmp_path / "tiny")
    assert "does not do as its do_flip_channel_order says" in error_of("--out", out, "--model", tmp_path / "tiny")


@pytest.mark.parametrize(
    ("model", "processor", "sentence"),
    [
        ({}, {}, None),
        ({}, {"rescale_factor": 0.5, "image_mean": [0.1, 0.2, 0.3], "temperature": 2.0}, None),
        ({"id2label": {0: "one", 1: "other"}}, {}, "with one label"),
        ({}, {"size": {"height": 48, "width": 32}, "size_divisor": 32}, "do as its size says"),
        ({}, {"size": {"height": 32, "width": 48}, "size_divisor": 32}, "do as its size says"),
        ({}, {"do_resize": False, "do_normalize": False}, "do as its do_resize and do_normalize says"),
        ({}, {"resample": Image.Resampling.NEAREST}, "do as its resample says"),
    ],
)
def test_what_the_page_does_not_do_is_refused(model, processor, sentence):
    segmenter = Segmenter(tiny_model(**model), tiny_processor(**processor))
    if sentence is None:
        return _check("mine", segmenter)
    with pytest.raises(ValueError, match=f"mine cannot run in a browser: the page .*{sentence}"):
        _check("mine", segmenter)


@pytest.mark.parametrize(("side", "box"), [(4, (3, 1, 7, 5)), (5, (2, 0, 7, 5)), (6, (2, 0, 8, 6)), (9, (2, 0, 8, 6))])
def test_of_a_slide_its_middle_is_an_example(side, box):
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    assert list(_cut_middle(image, side).getdata()) == list(image.crop(box).getdata())


def test_a_package_comes_as_it_was_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "registry" / PACKAGES[0].name / "-" / f"{PACKAGES[0].name}-{PACKAGES[0].version}.tgz"
    archive.parent.mkdir(parents=True)
    with serve_folder(tmp_path / "registry") as registry:
        monkeypatch.setenv("npm_config_registry", registry.url)
        with pytest.raises(ValueError, match="npm's registry does not give .*not found"):
            copy_packages(tmp_path)
        archive.write_bytes(b"something else")
        with pytest.raises(ValueError, match="its SHA-256 is another"):
            copy_packages(tmp_path)
    with pytest.raises(ValueError, match="npm's registry does not give .*refused"):
        copy_packages(tmp_path)
    assert list((tmp_path / "cache").rglob("*.tgz")) == []

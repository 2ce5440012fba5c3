"""What is kept for the next request is the answer to nothing else."""

import base64
import inspect
import json
import shutil
import tempfile
import threading
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import anyio
import nibabel
import numpy as np
import pytest
from captioning import captioning_model
from dicom_files import make_dicom, save_dicom
from gradio.utils import get_upload_folder
from PIL import Image
from tiny_lvit import tiny_processor

from lvit_hf.demo import build_demo
from lvit_hf.demo.engine import Engine, Request, Settings
from lvit_hf.demo.service import describe
from lvit_hf.demo.viewer import NOT_USED, Answers, _encode_classes, compare, judge, list_notes, needs_tiles
from lvit_hf.inference.collection import collect
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.files import FileResult, Item, save_mask
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.readers import read_scan
from lvit_hf.model.captions_lvit import CaptionCheck, turn_sides
from lvit_hf.model.segmenter_lvit import Scope


LEFT, RIGHT = "one infected area, upper left lung", "one infected area, lower right lung"
SLICES = 8


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(captioning_model("lung infection"), tiny_processor())


@pytest.fixture
def engine(segmenter) -> Engine:
    return Engine(segmenter, "mine")


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Item:
    path = tmp_path_factory.mktemp("volume") / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 255, (20, 24, SLICES)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 2, 1])), path)
    return Item(path.name, LEFT, path)


def segment_all(engine: Engine, request: Request) -> FileResult:
    *_, row = engine.segment_volume(request)
    return row


def save_noise(path: Path, seed: int) -> Item:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return Item(path.name, LEFT, path)


def test_two_images_of_one_name_have_each_its_own_scan_and_mask(engine, segmenter, tmp_path):
    items = [save_noise(tmp_path / visitor / "scan.png", seed) for seed, visitor in enumerate(("one", "other"))]
    for item in (*items, *items):
        row = engine.segment(Request(item))
        np.testing.assert_array_equal(row.scan.slices, read_scan(item.path).slices)
        [expected] = segmenter.segment([item.path], [LEFT])
        np.testing.assert_allclose(row.result.probabilities, expected.probabilities, atol=1e-5)


def test_slices_captions_and_settings_are_kept_apart(engine, segmenter, volume):
    requests = [
        Request(volume),
        Request(volume, slice_index=7),
        Request(replace(volume, text=RIGHT)),
        Request(replace(volume, text=None)),
        Request(volume, Settings(side="patient")),
        Request(volume, Settings(tile_size=16)),
        Request(replace(volume, text="a dog"), Settings(on_unknown="use")),
        Request(replace(volume, text="a dog")),
    ]
    scan, found = read_scan(volume.path), []
    for request in (*requests, *requests):
        settings = request.settings
        [expected] = segmenter.segment(
            [scan.image(request.slice_index)],
            [request.item.text],
            side=settings.side,
            on_unknown=settings.on_unknown,
            tile_size=settings.tile_size or None,
        )
        found.append(engine.segment(request).result)
        np.testing.assert_allclose(found[-1].probabilities, expected.probabilities, atol=1e-5)
        assert (found[-1].text, found[-1].text_used) == (expected.text, expected.text_used)
    first, second = found[: len(requests)], found[len(requests) :]
    assert all(one is other for one, other in zip(first, second))  # nothing is computed twice


def test_one_volume_has_for_each_caption_and_side_its_own_masks(engine, segmenter, volume):
    scan = read_scan(volume.path)
    for text, side in ((LEFT, "image"), (RIGHT, "image"), (RIGHT, "patient"), (LEFT, "image")):
        row = segment_all(engine, Request(replace(volume, text=text), Settings(side=side), slice_index=None))
        for index in range(SLICES):
            [expected] = segmenter.segment([scan.image(index)], [text], side=side)
            np.testing.assert_array_equal(row.result.mask(0.4, index), expected.mask(0.4))
        again = segment_all(engine, Request(replace(volume, text=text), Settings(side=side)))
        assert again.result is row.result  # nothing is computed twice


def test_a_true_mask_is_compared_with_the_slice_that_is_shown(engine, volume, tmp_path):
    request = Request(volume, slice_index=None)
    row = segment_all(engine, request)
    [name] = save_mask(row, 0.4, tmp_path, "truth")
    assert compare(row, request, 0.4, tmp_path / name) == {"dice": 1, "iou": 1}
    for index in (1, 7):
        request = Request(volume, slice_index=index)
        row = engine.segment(request)
        assert compare(row, request, 0.4, tmp_path / name) == {"dice": 1, "iou": 1}
        Image.fromarray(row.result.mask(0.4)).save(tmp_path / "slice.png")
        assert compare(row, request, 0.4, tmp_path / "slice.png") == {"dice": 1, "iou": 1}
    assert compare(row, request, 0.9, tmp_path / name)["dice"] < 1
    Image.new("L", (9, 7)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="The true mask has 9 x 7 pixels and the image 20 x 24; they must be"):
        compare(row, request, 0.4, tmp_path / "other.png")


def test_members_of_a_zip_have_each_its_own_mask(engine, segmenter, tmp_path):
    items = [save_noise(tmp_path / visitor / "scan.png", seed) for seed, visitor in enumerate(("one", "other"))]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for item in items:
            archive.write(item.path, f"{item.path.parent.name}/scan.png")
    for member, item in zip(collect([str(tmp_path / "all.zip")], LEFT), items, strict=True):
        [expected] = segmenter.segment([item.path], [LEFT])
        np.testing.assert_allclose(engine.segment(Request(member)).result.probabilities, expected.probabilities, 1e-3)


def test_another_checkpoint_has_its_own_masks(segmenter, volume, tmp_path):
    other = captioning_model("lung infection")  # other weights alone tell them apart
    other.lvit.null_text.data += 1
    for part in (other, tiny_processor()):
        part.save_pretrained(tmp_path)
    engine = Engine(segmenter, "mine", any_model=True)
    for name, core in (("", segmenter), (str(tmp_path), Segmenter(other, tiny_processor()))) * 2:
        [expected] = core.segment([read_scan(volume.path).image()])
        request = Request(replace(volume, text=None), Settings(name))
        row = engine.segment(request)
        np.testing.assert_allclose(row.result.probabilities, expected.probabilities, atol=1e-5)
        assert describe(engine, row, request, 0.5)["model"] == (name or "mine")


def test_an_image_is_not_kept_waiting_until_a_slide_of_another_visitor_is_done(engine, segmenter, tmp_path):
    slide = tmp_path / "slide.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (60, 60, 3), np.uint8)).save(slide)
    request = Request(save_noise(tmp_path / "other" / "scan.png", 1))
    waiting: list[Future] = []

    def progress(finished: int, total: int):
        if not waiting:
            waiting.append(pool.submit(engine.segment, request))
        wait(waiting, 0.3)
        answered.append(waiting[0].done())

    answered: list[bool] = []
    with ThreadPoolExecutor() as pool:
        engine.segment(Request(Item("slide.png", LEFT, slide), Settings(tile_size=16)), progress)
    assert len(answered) > 2 and answered[-1]
    [expected] = segmenter.segment([request.item.path], [LEFT])
    np.testing.assert_allclose(waiting[0].result().result.probabilities, expected.probabilities, atol=1e-5)


def test_a_caption_that_is_refused_fails_nobody_who_asks_at_the_same_time(segmenter, volume, tmp_path):
    engine, settings, gate = Engine(segmenter, "mine"), Settings(on_unknown="error"), threading.Event()
    hook = segmenter.model.register_forward_pre_hook(lambda *_: gate.wait(60) and None)
    requests = [Request(volume, settings), Request(replace(volume, text="a dog"), settings)]
    requests.append(Request(save_noise(tmp_path / "other" / "scan.png", 1), settings))
    with ThreadPoolExecutor() as pool:
        first, refused, other = (pool.submit(engine.segment, request) for request in requests)
        wait([other], 0.5)  # all three have asked while the network was busy
        gate.set()
    hook.remove()
    assert isinstance(refused.exception(), ValueError)
    assert first.result().result.text_used and other.result().result.text_used


@pytest.fixture
def upload(volume) -> Path:
    """The volume as a visitor has uploaded it."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=get_upload_folder()) as folder:
        yield Path(shutil.copy(volume.path, folder))


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_what_the_page_shows_and_hands_out_is_cut_where_it_says(engine, upload, threshold):
    answers = Answers(engine)
    payload = {"files": [str(upload)], "text": LEFT, "threshold": threshold, "all": True}
    row = segment_all(engine, Request(Item(upload.name, LEFT, upload), slice_index=None))
    masks = row.result.mask(threshold)
    assert anyio.run(answers.facts, payload)["facts"]["voxels"] == masks.sum()
    for index in (1, 7):
        shown = anyio.run(answers.part, {**payload, "slice": index})
        counts = np.frombuffer(zlib.decompress(base64.b64decode(shown["map"]["data"])), np.uint8)
        np.testing.assert_array_equal(counts.reshape(masks.shape[1:]), row.result.counts[index])
        one = {**payload, "all": False, "slice": index}
        assert anyio.run(answers.facts, one)["facts"]["area_pixels"] == masks[index].sum()
    native = anyio.run(answers.download, {**payload, "what": "native"})["path"]
    np.testing.assert_array_equal(read_scan(native).slices > 0, masks)
    report = Path(anyio.run(answers.download, {**payload, "what": "report"})["path"])
    assert json.loads(report.read_text(encoding="utf-8"))["voxels"] == masks.sum()
    with zipfile.ZipFile(anyio.run(answers.download, {**payload, "what": "all"})["path"]) as archive:
        [entry] = json.loads(archive.read("report.json"))["images"]
    assert (entry["threshold"], entry["voxels"]) == (threshold, masks.sum())


def test_notes_and_chips_have_left_and_right_as_the_visitor_means_them(engine, upload):
    answers, found, picture = Answers(engine), {}, upload.with_name("picture.png")
    read_scan(upload).image(5).save(picture)  # a volume would be out of scope, and nothing said of what it shows
    for number, (side, text) in enumerate((("patient", LEFT), ("image", turn_sides(LEFT)))):
        payload = {"files": [str(picture)], "text": text, "side": side, "threshold": 0.5, "visitor": "one"}
        found[side] = anyio.run(answers.segment, {**payload, "id": number})
    patient, image = found["patient"], found["image"]
    assert patient["map"] == image["map"] and dict(patient["reading"]["findings"][0])["left lung"] == "upper"
    notes = [note["en"] for note in patient["notes"]]
    assert any(note.startswith("Left lung: the caption says upper") for note in notes), notes
    assert any(note["en"].startswith("Right lung: the caption says upper") for note in image["notes"])
    assert [row["text"] for row in patient["captions"]] == [turn_sides(row["text"]) for row in image["captions"]]


def test_how_probable_it_is_that_there_is_nothing_is_said_of_one_slice_and_of_no_whole_volume(upload):
    segmenter = Segmenter(captioning_model("lung infection", presence_head=True), tiny_processor())
    answers, payload = Answers(Engine(segmenter, "mine")), {"files": [str(upload)], "threshold": 0.5, "visitor": "one"}
    [expected] = segmenter.segment([read_scan(upload).image(3)])
    assert 0 < expected.described["absence"] < 1
    one = segment(answers, {**payload, "slice": 3, "id": 1})
    assert one["absence"] == pytest.approx(expected.described["absence"], abs=1e-4)
    assert segment(answers, {**payload, "all": True, "id": 2})["absence"] is None


@pytest.mark.parametrize("kind, is_slide", [("nuclei", True), ("lung infection", False)])
def test_tiles_are_for_what_looks_like_a_slide_whatever_its_caption_says(segmenter, kind, is_slide):
    [result] = segmenter.segment([Image.new("RGB", (400, 300))], ["The nuclei are evenly distributed."])
    result = replace(result, labels=("nuclei",), scope=Scope(True, 0.9, kind, {kind: 0.9}))
    facts = {"out_of_scope": None}
    assert needs_tiles(result, facts, Settings()) == is_slide
    assert not needs_tiles(result, facts, Settings(tile_size=96))
    assert not needs_tiles(result, {"out_of_scope": "It looks like none."}, Settings())


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.png", "", None, 3])
def test_no_file_but_an_upload_is_opened(engine, path):
    answer = anyio.run(Answers(engine).look, {"files": [path]})
    assert "not kept any more" in json.dumps(answer["error"])


def test_no_file_beside_the_uploads_is_opened(engine, tmp_path, monkeypatch):
    uploads = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    answers, own = Answers(engine), save_noise(uploads / "scan.png", 0).path
    secret = save_noise(tmp_path / "private" / "scan.png", 1).path
    (uploads / "link.png").symlink_to(secret)
    assert anyio.run(answers.look, {"files": [str(own)]})["kind"] == "image"
    for path in (secret, uploads / "link.png", f"{uploads}/../private/scan.png"):
        assert "not kept any more" in json.dumps(anyio.run(answers.look, {"files": [str(path)]}))


@pytest.fixture
def pictures(engine, tmp_path, monkeypatch) -> list[Path]:
    """Two pictures of a visitor."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return [save_noise(tmp_path / str(seed) / f"{seed}.png", seed).path for seed in range(2)]


def test_what_is_odd_about_a_file_and_its_masks_is_said(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    pixels = np.arange(480, dtype=np.uint16).reshape(24, 20)
    path = save_dicom(make_dicom(pixels, StudyInstanceUID=None, PixelSpacing=b"0\\0 "), tmp_path / "a" / "a.dcm")
    answers, payload = Answers(engine), {"threshold": 0.5, "visitor": "one", "id": 1}
    one = {**payload, "files": [str(path)]}
    odd, lacking = "The file's PixelSpacing cannot be and is not used.", "There is no DICOM Segmentation"
    assert odd in [note["en"] for note in segment(answers, one)["notes"]]
    for what, has_note in (("native", True), ("all", True), ("mask", False), ("report", False)):
        notes = [note["en"] for note in anyio.run(answers.download, {**one, "what": what})["notes"]]
        assert any(note.startswith(lacking) for note in notes) == has_note, what
    other = save_noise(tmp_path / "b" / "b.png", 1).path
    rows = segment(answers, {**payload, "files": [str(path), str(other)], "id": 2})["rows"]
    notes = [[note["en"] for note in row["said_notes"]] for row in rows]
    assert notes[0][0] == odd and notes[0][-1].startswith(lacking) and not notes[1]


def test_a_mask_that_cannot_be_written_is_a_row_with_its_reason(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    wide = [Image.new("L", (33_000, 4), grey) for grey in (10, 99)]  # wider than a NIfTI file can be
    wide[0].save(tmp_path / "wide.tif", save_all=True, append_images=wide[1:])
    payload = {"files": [str(tmp_path / "wide.tif")], "threshold": 0.5, "visitor": "one", "id": 1, "all": True}
    answers = Answers(engine)
    for what in ("all", "native"):
        error = anyio.run(answers.download, {**payload, "what": what})["error"]
        assert "The mask has 33,000 pixels along an axis" in error["en"] and "33,000 像素" in error["zh"]
    other = save_noise(tmp_path / "b" / "b.png", 1).path
    rows = segment(answers, {**payload, "files": [*payload["files"], str(other)]})["rows"]
    assert [bool(row.get("error")) for row in rows] == [True, False] and "wide.tif" in rows[0]["problem"]["en"]


def test_a_volume_of_too_many_slices_is_refused_wherever_it_is_given(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    other, answers, paths = str(save_noise(tmp_path / "b" / "b.png", 1).path), Answers(engine), {}
    for slices in (1000, 1001):
        paths[slices] = str(tmp_path / f"{slices}.nii")
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, slices), np.uint8), np.eye(4)), paths[slices])
    payload = {"threshold": 0.5, "visitor": "one", "id": 1}
    assert anyio.run(answers.look, {"files": [paths[1000]]})["slices"] == 1000
    long = {**payload, "files": [paths[1001]]}
    [_, row] = segment(answers, {**payload, "files": [other, paths[1001]]})["rows"]
    said = [anyio.run(answers.look, long)["error"], segment(answers, {**long, "id": 2})["error"], row["problem"]]
    said.append(segment(answers, {**long, "all": True, "id": 3})["error"])
    for sentence in said:
        assert sentence["en"].startswith("1001.nii has 1,001 slices, more than the 1,000 that are segmented.")


def test_a_file_less_is_another_request(engine, pictures):
    answers = Answers(engine)
    for files, kind in ((pictures, "many"), (pictures[:1], "image"), (pictures, "many")):
        assert anyio.run(answers.look, {"files": list(map(str, files))})["kind"] == kind


def segment(answers: Answers, payload: dict) -> dict:
    answer: dict = {"running": {}}
    while "running" in answer:
        answer = anyio.run(answers.segment, payload)
    return answer


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_the_masks_of_many_files_are_cut_where_the_page_says(engine, segmenter, pictures, threshold):
    answers = Answers(engine)
    payload = {"files": list(map(str, pictures)), "text": LEFT, "threshold": threshold, "visitor": "one", "id": 1}
    answer = segment(answers, payload)
    assert answer["stopped"] is None
    with zipfile.ZipFile(answer["path"]) as archive:
        for number, (path, row) in enumerate(zip(pictures, answer["rows"], strict=True)):
            [expected] = segmenter.segment([path], [LEFT])
            mask = np.asarray(Image.open(archive.open(f"masks/{number}_mask.png"))) > 0
            np.testing.assert_array_equal(mask, expected.mask(threshold))
            assert (row["threshold"], row["area_pixels"]) == (threshold, mask.sum())
    one = {**payload, "files": [str(pictures[0])], "what": "overlay"}
    overlay = Image.open(anyio.run(answers.download, one)["path"])
    [expected] = segmenter.segment([pictures[0]], [LEFT])
    np.testing.assert_array_equal(overlay, draw_overlay(expected.image, expected.mask(threshold)))


@pytest.mark.parametrize("name", ["/etc", "someone/lvit", "../checkpoint", "x" * 1000])
def test_visitors_may_not_name_a_checkpoint_of_their_own(engine, volume, name):
    with pytest.raises(ValueError, match="serves only"):
        engine.segment(Request(volume, Settings(name)))


def test_a_volume_is_opened_in_its_middle_and_shown_where_its_mask_is_largest(engine, upload):
    answers, payload = Answers(engine), {"files": [str(upload)], "threshold": 0.5, "visitor": "one", "all": True}
    for asked, shown in (({}, SLICES // 2), ({"slice": 2}, 2), ({"slice": SLICES + 9}, SLICES - 1)):
        look = anyio.run(answers.look, {**payload, **asked})
        assert (look["slice"], look["slices"], look["width"], look["height"]) == (shown, SLICES, 20, 24)
    areas = segment_all(engine, Request(Item(upload.name, "", upload))).result.areas(0.5)
    assert segment(answers, {**payload, "slice": 2, "id": 1})["slice"] == areas.argmax() and areas.any()
    for number, (asked, shown) in enumerate((({}, SLICES // 2), ({"slice": 2}, 2)), 2):
        answer = segment(answers, {**payload, **asked, "threshold": 1.0, "id": number})
        assert answer["slice"] == shown and answer["facts"]["voxels"] == 0


def test_the_classes_of_a_mask_are_numbered_by_their_labels_and_the_background_is_0(segmenter):
    [result] = segmenter.segment([Image.new("RGB", (3, 1))])
    scores = np.eye(3, dtype=np.float32)[:, None]  # each label at one pixel
    for labels, expected in (
        (("background", "polyp", "tool"), [0, 2, 3]),
        (("polyp", "background", "tool"), [1, 0, 3]),
        (("polyp", "tool", "background"), [1, 2, 0]),
        (("polyp", "tool", "other"), [1, 2, 3]),
    ):
        encoded = _encode_classes(replace(result, labels=labels, scores=scores))
        values = np.frombuffer(zlib.decompress(base64.b64decode(encoded["data"])), np.uint8)
        assert (values.tolist(), encoded["width"], encoded["height"]) == (expected, 3, 1)
    assert _encode_classes(result) is None


@pytest.mark.parametrize(
    ("text", "text_used", "check", "verdict"),
    [
        (None, False, None, "none"),
        (LEFT, False, None, "unused"),
        (LEFT, True, None, "unjudged"),
        (LEFT, True, CaptionCheck(0.49, ("left lung: no",)), "differs"),
        (LEFT, True, CaptionCheck(0.5, ("left lung: no",)), "partly"),
        (LEFT, True, CaptionCheck(0.5, ()), "fits"),
    ],
)
def test_the_verdict_on_a_caption_and_the_notes_on_it_agree(segmenter, text, text_used, check, verdict):
    [result] = segmenter.segment([Image.new("RGB", (9, 9))])
    result, facts = replace(result, text=text, text_used=text_used, check=check), {"out_of_scope": None, "notes": []}
    assert judge(result) == verdict
    expected = {"unused": [NOT_USED], "differs": ["Left lung: no."], "partly": ["Left lung: no."]}.get(verdict, [])
    assert list_notes(result, {**facts, "side": "image"}) == expected
    said = {"out_of_scope": "It looks like none.", "notes": ["a", ""], "side": "image"}
    kept = [NOT_USED] if verdict == "unused" else []
    assert list_notes(result, said) == ["It looks like none.", "a", *kept]  # and nothing of what it shows


def test_what_is_understood_is_shown_with_the_left_and_right_that_was_typed(engine):
    answers = Answers(engine)
    for side in ({}, {"side": ""}, {"side": "image"}, {"side": "patient"}):
        reading = anyio.run(answers.read, {"text": LEFT, **side})["reading"]
        assert reading["understood"] and dict(reading["findings"][0])["left lung"] == "upper"
    assert anyio.run(answers.read, {"text": ""})["reading"] is None


def test_the_builder_writes_what_is_chosen_alone(engine):
    answers, chosen = Answers(engine), {"size": "small", "shape": "", "location": []}
    written = [anyio.run(answers.write, {"family": "polyp", "chosen": one}) for one in (chosen, {"size": "small"})]
    assert written[0] == written[1] and "small" in written[0]["text"]
    assert "Choose what" in anyio.run(answers.write, {"family": "polyp", "chosen": {"size": ""}})["error"]["en"]


def test_a_sentence_about_a_file_does_not_say_where_the_server_keeps_it(engine, upload):
    upload.write_bytes(b"broken")
    for name in ("files", "truth"):
        good = save_noise(upload.with_name("good.png"), 0).path
        payload = {"files": [str(upload)]} if name == "files" else {"files": [str(good)], "truth": str(upload)}
        error = anyio.run(Answers(engine).facts, {**payload, "threshold": 0.5})["error"]["en"]
        assert upload.name in error and str(upload.parent) not in error


def test_masks_are_corrected_only_where_a_folder_keeps_them(engine, tmp_path):
    for keep, offered in ((None, set()), (tmp_path / "kept", {"mask", "keep"})):
        html = Answers(engine, keep).build()
        assert {function.__name__ for function in html.server_fns} & {"mask", "keep"} == offered
        assert html.props["keep"] == (keep and "kept")


def test_the_endpoints_have_the_defaults_that_their_functions_have_and_are_not_seen_on_the_page(segmenter):
    with build_demo(segmenter) as demo:
        public = [function for function in demo.fns.values() if function.api_visibility == "public"]
    assert [function.api_name for function in public] == ["segment", "caption", "segment_volume", "segment_many"]
    for function in public:
        parameters = list(inspect.signature(function.fn).parameters.values())
        for component, parameter in zip(function.inputs, parameters):
            has_default = parameter.default is not parameter.empty
            assert component.value == (parameter.default if has_default else None), parameter
            assert component.label.replace(" ", "_") == parameter.name
        assert all(part.visible is False and part.label for part in (*function.inputs, *function.outputs))

"""Whatever is sent to the service is answered by a sentence, which says nothing of the server, and it goes on."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file


FILE_TYPE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def picture(url) -> dict:
    """A good picture on the server."""
    return upload(url, "picture.png", png())


def upload(url: str, name: str, content: bytes) -> dict:
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": (name, content)})
    return {"path": answer.raise_for_status().json()[0], "meta": FILE_TYPE}


def call(url: str, endpoint: str = "segment", **parameters) -> str | list:
    """What the service answers: its results, or the sentence by which it refuses."""
    # Not by httpx's own encoder, which has no NaN.
    body, address = json.dumps(parameters), f"{url}gradio_api/call/v2/{endpoint}"
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(address, content=body, headers=headers)
    if answer.status_code != httpx.codes.OK:
        return answer.json()["detail"]
    stream = httpx.get(f"{address}/{answer.json()['event_id']}", timeout=60).text
    event, data = re.findall(r"event: (?!heartbeat)(\w+)\ndata: (.*)", stream)[-1]
    return json.loads(data) if event == "complete" else json.loads(data)["error"]


def check_sentence(answer: str | list, asked: object = ""):
    assert isinstance(answer, str), (asked, answer)
    assert re.fullmatch(r"\S.{10,400}\.", answer), (asked, answer)
    for trace in ("Traceback", 'File "', "/gradio/", "/tmp/", "site-packages", str(Path(__file__).parents[2])):
        assert trace not in answer


def png(size: tuple[int, int] = (60, 40), mode: str = "RGB") -> bytes:
    return encode(Image.new(mode, size), "PNG")


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that announces another size than it has."""
    content = bytearray(png())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def dicom(change: Callable[[pydicom.Dataset], object]) -> bytes:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    change(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def nifti(values: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


def with_pixel_rows(rows: int) -> Callable[[pydicom.Dataset], object]:
    return lambda dataset: setattr(dataset, "Rows", rows)


FILES = {
    "truncated.png": png((300, 200))[:90],
    "header_alone.png": png()[:33],
    "damaged.png": png().replace(b"IDAT", b"IDAx"),
    "truncated.jpg": encode(Image.effect_noise((90, 60), 50), "JPEG")[:400],
    "truncated.tif": encode(Image.new("I;16", (90, 60)), "TIFF")[:200],
    "truncated.webp": encode(Image.effect_noise((90, 60), 50), "WEBP")[:100],
    "truncated.bmp": encode(Image.new("RGB", (90, 60)), "BMP")[:500],
    "text.png": b"This is a text, not a picture.\n",
    "page.jpg": b"<html><script>alert(1)</script></html>",
    "empty.png": b"",
    "zeros.png": bytes(5000),
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "paper.pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "pickle.png": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "no_suffix": b"nothing that is known",
    "bomb.png": png_with_header(60_000, 60_000),
    "many_pixels.png": png((5000, 4000), "1"),
    "no_width.png": png_with_header(0, 40),
    "not.dcm": b"not a DICOM file",
    "truncated.dcm": Path(get_testdata_file("CT_small.dcm")).read_bytes()[:2000],
    "no_pixels.dcm": dicom(lambda dataset: dataset.__delitem__("PixelData")),
    "no_rows.dcm": dicom(with_pixel_rows(0)),
    "wrong_rows.dcm": dicom(with_pixel_rows(5000)),
    "report.dcm": Path(get_testdata_file("reportsi.dcm")).read_bytes(),
    "not.nii": b"not a NIfTI file",
    "not.nii.gz": gzip.compress(b"not a NIfTI file"),
    "not_gzip.nii.gz": b"not a gzip file",
    "five_axes.nii": nifti(np.zeros((4, 4, 4, 2, 2), np.float32)),
    "one_axis.nii": nifti(np.zeros(4, np.float32)),
    "complex.nii": nifti(np.zeros((4, 4, 4), np.complex64)),
    "no_number.nii": nifti(np.full((4, 4, 4), np.nan, np.float32)),
    "truncated.nii": nifti(np.ones((9, 9, 9), np.float32))[:1000],
    "bomb.nii.gz": gzip.compress(
        nifti(np.zeros((1, 1, 1), np.uint8))[:40] + b"\x03\x00" + b"\xff\x7f" * 3 + bytes(500)
    ),
    "not.zip": b"PK\x03\x04 not a zip",
}


KINDS = {"dicom": (".dcm",), "nifti": (".nii", ".nii.gz"), "picture": (".png", ".jpg", ".tif", ".webp", ".bmp")}
KINDS["other"] = (".svg", ".pdf", ".zip", "no_suffix")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_answered_by_a_sentence(url, kind):
    names = [name for name in FILES if name.endswith(KINDS[kind])]
    assert len(names) > 1
    for name in names:
        check_sentence(call(url, image=upload(url, name, FILES[name])), name)


NAMES = [
    "../../../etc/passwd.png",
    "C:\\windows\\evil.png",
    "a\x00b.png",
    "<script>alert(1)</script>.png",
    "名前 %2e.png",
]


def test_names_of_files_are_no_paths(url):
    for name in NAMES:
        measures = call(url, image=upload(url, name, png()))[2]
        assert not set(measures["image"]) & set("/\\\x00<>"), name


PARAMETERS = {
    "no image": {"image": None},
    "an empty image": {"image": {}},
    "a text as image": {"image": "picture.png"},
    "a number as image": {"image": 7},
    "a path of the server": {"image": {"path": "/etc/passwd", "meta": FILE_TYPE}},
    "a path upwards": {"image": {"path": "../../../etc/passwd", "meta": FILE_TYPE}},
    "a file URL": {"image": {"path": "file:///etc/passwd", "url": "file:///etc/passwd", "meta": FILE_TYPE}},
    "an address of the server's network": {"image": {"path": "http://127.0.0.1:9/x.png", "meta": FILE_TYPE}},
    "a data URL": {"image": "data:image/png;base64,AAAA"},
    "a long caption": {"text": "x" * 10_000},
    "a list as caption": {"text": ["one", "two"]},
    "a text as threshold": {"threshold": "half"},
    "no threshold": {"threshold": None},
    "a list as threshold": {"threshold": [0.5]},
    "a threshold above 1": {"threshold": 1.5},
    "a negative threshold": {"threshold": -0.1},
    "a threshold that is no number": {"threshold": float("nan")},
    "an infinite threshold": {"threshold": float("inf")},
    "a truth value as threshold": {"threshold": True},
    "a negative tile size": {"tile_size": -5},
    "half a tile": {"tile_size": 96.5},
    "a tiny tile size": {"tile_size": 3},
    "a text as tile size": {"tile_size": "large"},
    "an unknown model": {"model": "no/such/model"},
    "a folder that is no model": {"model": "/etc"},
    "an address as model": {"model": "https://example.com/model"},
    "a long name of a model": {"model": "x" * 5000},
    "a list as model": {"model": ["lvit-small"]},
    "a name with a null character": {"model": "a\x00b"},
    "slice 0": {"slice_number": 0},
    "half a slice": {"slice_number": 1.5},
    "a huge slice": {"slice_number": 1e300},
    "a text as slice": {"slice_number": "first"},
    "an unknown parameter": {"color": "red"},
    "another side": {"side": "left"},
    "another way with unknown captions": {"on_unknown": "guess"},
}


@pytest.mark.parametrize("parameter", sorted({name for parameters in PARAMETERS.values() for name in parameters}))
def test_a_bad_parameter_is_answered_by_a_sentence(url, picture, parameter):
    for name, parameters in PARAMETERS.items():
        if parameter in parameters:
            check_sentence(call(url, **{"image": picture, **parameters}), name)


def test_sentences_name_the_parameter_and_what_is_expected(url, picture):
    assert (
        call(url, image=picture, threshold="half")
        == "threshold must be a number of at least 0 and of at most 1, got 'half'."
    )
    assert call(url, image=picture, tile_size=[9]) == "tile_size must be a whole number of at least 0, got [9]."
    assert call(url, image=picture, slice_number=1.5) == "slice_number must be a whole number, got 1.5."
    assert call(url, image=picture, slice_number=1.0)[2]["slice"] == 0
    assert call(url, image=picture, text={"a": 1}) == "text must be a text, got {'a': 1}."
    assert call(url, image="x.png") == "image must be an uploaded file, got 'x.png'."
    assert call(url, image=picture, side="left") == "side must be one of image, patient, got 'left'."


def test_calls_that_do_not_exist_are_refused(url):
    check_sentence(call(url, "no_such_endpoint"))
    check_sentence(call(url))
    old_call = httpx.post(f"{url}gradio_api/call/no_such_endpoint", json={"data": []})
    assert old_call.status_code == 422
    too_few = httpx.post(f"{url}gradio_api/call/segment", json={"data": [None]}).json()["event_id"]
    stream = httpx.get(f"{url}gradio_api/call/segment/{too_few}").text
    assert (
        "8 values are needed (image, text, threshold, tile_size, model, slice_number, side, on_unknown), got 1."
        in stream
    )


def test_a_fault_of_the_server_is_logged_and_no_missing_endpoint(url, picture, segmenter, monkeypatch, caplog):
    def fail(*_, **__):
        raise KeyError("a fault")

    monkeypatch.setattr(segmenter, "segment", fail)
    answer = call(url, image=picture, text="something that is not kept yet")
    assert answer == "Something went wrong on the server. Its log says what."
    assert "a fault" in caplog.text and "Traceback" in caplog.text


def test_characters_that_cannot_be_seen_are_left_out_of_captions(url, picture):
    measures = call(url, image=picture, text="one\x00 infected\x1b[31m\u202e area\n")[2]
    assert measures["text"] == "one infected [31m area"


def test_the_server_is_alive_after_all_that(url, picture):
    assert httpx.get(f"{url}health").text == "ok"
    assert call(url, image=picture)[2]["width"] == 60

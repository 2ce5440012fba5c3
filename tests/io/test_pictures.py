"""Kinds of oddities in pictures, each as a table of them."""

import gzip
import io
import logging
import struct
import zipfile
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from dicom_files import list_groups, make_dicom, save_dicom
from PIL import Image

from lvit_hf.io.readers import explain_mask, read_mask, read_scan
from lvit_hf.model.image_processing_lvit import pil_to_array, window_to_uint8


GREY = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
DEEP = np.linspace(0, 4095, 1200).reshape(30, 40).astype(np.uint16)
PAGES = np.stack([DEEP, DEEP // 2, DEEP[::-1]])


def test_a_stack_is_read_whole_and_by_one_window(tmp_path):
    for number, options in enumerate(
        ({}, {"compression": "zlib"}, {"imagej": True, "metadata": {"axes": "ZYX"}}, {"bigtiff": True})
    ):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, PAGES, photometric="minisblack", **options)
        scan = read_scan(path)
        assert scan.slices.shape == (3, 30, 40) and not scan.notes
        np.testing.assert_allclose(scan.slices[1], scan.slices[0] / 2.0, atol=2)


def test_a_stack_as_pillow_writes_it(tmp_path):
    first, *others = [Image.fromarray(page) for page in (RGB, RGB[::-1], RGB // 2)]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").slices, [RGB, RGB[::-1], RGB // 2])


def test_pages_of_another_size_are_left_out_and_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY)
        writer.write(GREY[:8, :8])
        writer.write(GREY[:4, :4])
    scan = read_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.slices, [GREY])
    assert "2 more images of another size" in scan.notes[0]


TIFFS = {
    "grey": (GREY, {}, GREY),
    "colour": (RGB, {"photometric": "rgb"}, RGB),
    "colour in planes": (np.moveaxis(RGB, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "white is zero": (GREY, {"photometric": "miniswhite"}, 255 - GREY),
    "16 bits in colour, the values of 8": (RGB.astype(np.uint16), {"photometric": "rgb"}, None),
    "16 bits, white is zero": (4095 - DEEP, {"photometric": "miniswhite"}, None),
    "32 bits": (DEEP.astype(np.uint32) * 1000, {}, None),
    "64 bits": (DEEP.astype(np.float64) * 1e5, {}, None),
    "16-bit floats": (DEEP.astype(np.float16) * 10, {}, None),
    "signed": (DEEP.astype(np.int16) - 2000, {}, None),
    "signed, white is zero": (2000 - DEEP.astype(np.int16), {"photometric": "miniswhite"}, None),
    "floats, white is zero": (-DEEP.astype(np.float32), {"photometric": "miniswhite"}, None),
    "signed 8 bits": ((DEEP // 16 - 128).astype(np.int8), {}, None),
}


@pytest.mark.parametrize("name", TIFFS)
@pytest.mark.parametrize("order", "<>")
def test_every_kind_of_tiff(tmp_path, name, order):
    array, options, expected = TIFFS[name]
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=order, **options)
    [shown] = read_scan(tmp_path / "a.tif").slices
    if expected is not None:
        np.testing.assert_array_equal(shown, expected)
    else:
        assert (shown.min(), shown.max()) == (0, 255) and len(np.unique(shown)) > 200
        grey = shown if shown.ndim == 2 else shown[..., 0]
        assert name.startswith("16 bits in") or (np.diff(grey.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_file_is_upright_and_white_is_white_at_every_door(tmp_path, dtype, compression):
    """A file, a stack and an image that Pillow opened are the same picture."""
    shown = (DEEP // 16).astype(dtype)
    stored = -shown if dtype is np.float32 else np.iinfo(dtype).max - shown
    sides = {1: shown, 3: shown[::-1, ::-1], 5: shown.T, 6: np.rot90(shown, -1), 7: np.rot90(shown, 2).T}
    for orientation, upright in sides.items():
        tifffile.imwrite(tmp_path / "upright.tif", np.stack([upright] * 3), photometric="minisblack")
        for photometric, array in (("minisblack", shown), ("miniswhite", stored)):
            options = {"photometric": photometric, "compression": compression}
            for name, pages in (("one", array), ("stack", np.stack([array] * 3))):
                turned = [(274, 3, 1, orientation, False)]
                tifffile.imwrite(tmp_path / f"{name}.tif", pages, extratags=turned, metadata=None, **options)
            np.testing.assert_array_equal(pil_to_array(Image.open(tmp_path / "one.tif")), upright)
            np.testing.assert_array_equal(read_scan(tmp_path / "one.tif").slices, [window_to_uint8(upright)])
            expected = read_scan(tmp_path / "upright.tif").slices
            np.testing.assert_array_equal(read_scan(tmp_path / "stack.tif").slices, expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_stack_of_which_some_pages_are_turned_is_refused(tmp_path, orientation):
    tags = [(274, 3, 1, orientation, True)]  # of the first page alone
    tifffile.imwrite(tmp_path / "a.tif", PAGES, photometric="minisblack", compression="zlib", extratags=tags)
    with pytest.raises(ValueError, match="a.tif has pages that are turned in different ways"):
        read_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("other", [GREY[:8, :8], DEEP, GREY > 99])
def test_pages_of_the_first_kind_are_slices_wherever_they_lie(tmp_path, compression, other):
    first, *others = [Image.fromarray(page) for page in (GREY, other, GREY // 2)]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression=compression)
    scan = read_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.slices, [GREY, GREY // 2])
    assert "1 more images of another size or kind" in scan.notes[0]


def test_axes_that_make_no_slices_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 30, 40), np.uint16), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ValueError, match=r"a.tif.*2 \(T\).*save one channel and one stack"):
        read_scan(tmp_path / "a.tif")


@pytest.mark.parametrize("bigtiff", [True, False])
@pytest.mark.parametrize("order", "<>")
def test_pages_that_lead_to_each_other_are_refused_at_once(tmp_path, bigtiff, order):
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=bigtiff, byteorder=order) as writer:
        for page in PAGES:
            writer.write(page, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        first, last = tiff.pages[0], tiff.pages[2]
        end = last.offset + (8 + 20 * len(last.tags) if bigtiff else 2 + 12 * len(last.tags))
        content = bytearray((tmp_path / "a.tif").read_bytes())
    assert len(read_scan(tmp_path / "a.tif")) == 3
    content[end : end + (8 if bigtiff else 4)] = struct.pack(order + ("Q" if bigtiff else "I"), first.offset)
    (tmp_path / "a.tif").write_bytes(content)
    for reader in (read_scan, read_mask):
        with pytest.raises(ValueError, match="a.tif is a broken TIFF file: its pages never end"):
            reader(tmp_path / "a.tif")


def test_a_file_has_so_many_pages_and_no_more(tmp_path, monkeypatch):
    for count in (3, 4):
        tifffile.imwrite(tmp_path / f"{count}.tif", np.stack([GREY] * count), photometric="minisblack", metadata=None)
    monkeypatch.setattr("lvit_hf.io.pictures.MAX_PAGES", 3)
    assert len(read_scan(tmp_path / "3.tif")) == 3
    with pytest.raises(ValueError, match="4.tif is a broken TIFF file: its pages never end, or are more than 3"):
        read_scan(tmp_path / "4.tif")


@pytest.mark.parametrize("shape", [(1, 40), (30, 1), (1, 1), (3, 1, 40)])
def test_a_side_of_one_pixel_is_a_side(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").slices, values.reshape(-1, *shape[-2:]))


def test_values_that_make_no_greys_are_refused_and_booleans_are_black_and_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), np.complex64))
    with pytest.raises(ValueError, match="a.tif is a broken TIFF file: its values are complex64"):
        read_scan(tmp_path / "a.tif")
    first, *others = [Image.fromarray(page) for page in (GREY > 99, GREY > 200, GREY < 9)]
    first.save(tmp_path / "b.tif", save_all=True, append_images=others)
    np.testing.assert_array_equal(
        read_scan(tmp_path / "b.tif").slices, 255 * np.stack([GREY > 99, GREY > 200, GREY < 9])
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pages", [1, 2])
def test_values_that_are_no_numbers_are_black(tmp_path, value, pages):
    values = np.stack([DEEP] * pages).astype(np.float32)
    values[:, :10] = value
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    scan = read_scan(tmp_path / "a.tif")
    assert not scan.slices[:, :10].any() and scan.notes == ("Values that are no numbers are shown black.",)
    tifffile.imwrite(tmp_path / "rest.tif", values[:, 10:], photometric="minisblack")
    others = read_scan(tmp_path / "rest.tif")
    assert not others.notes
    np.testing.assert_allclose(scan.slices[:, 10:], others.slices, atol=1)


def test_a_file_of_no_numbers_or_that_ends_too_soon_is_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="a.tif has no value that is a number"):
        read_scan(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", DEEP, compression="zlib")
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:-40])
    with pytest.raises(ValueError, match="b.tif is a broken TIFF file"):
        read_scan(tmp_path / "b.tif")


def test_heic_is_read(tmp_path):
    pillow_heif.from_pillow(Image.fromarray(np.kron(RGB[:8, :8], np.ones((16, 16, 1), np.uint8)))).save(
        tmp_path / "a.heic", quality=-1
    )
    (tmp_path / "b").write_bytes((tmp_path / "a.heic").read_bytes())
    for name in ("a.heic", "b"):
        shown = read_scan(tmp_path / name).slices[0, 8::16, 8::16]
        np.testing.assert_allclose(shown, RGB[:8, :8], atol=40)
    assert (tmp_path / "a.heic",) in list_groups(tmp_path)


LABELS = np.zeros((64, 64), np.uint8)
LABELS[16:48, 16:48] = 1


@pytest.mark.parametrize("name", ["a.heic", "a.avif", "a.webp", "a.jp2", "a.jpg", "a.tif", "stack.tif", "colour.tif"])
def test_labels_that_were_compressed_with_loss_are_refused_and_white_is_read(tmp_path, name):
    for value in (255, 3):
        picture = Image.fromarray(LABELS * np.uint8(value))
        if name == "a.heic":
            pillow_heif.from_pillow(picture.convert("RGB")).save(tmp_path / name, quality=80)
        else:
            picture = picture.convert("RGB") if name == "colour.tif" else picture
            options = {"a.jp2": {"irreversible": True}, "a.tif": {"compression": "jpeg"}}.get(name, {})
            if name in ("stack.tif", "colour.tif"):
                options = {"compression": "jpeg", "save_all": True, "append_images": [picture, picture]}
            picture.save(tmp_path / name, quality=80, **options)
        if value == 255:
            assert all((mask == LABELS).all() for mask in read_mask(tmp_path / name))
        else:
            with pytest.raises(ValueError, match=f"{name}.* mask is .*compression does not keep labels"):
                read_mask(tmp_path / name)


def test_an_animation_is_its_first_frame_and_says_so(tmp_path):
    frames = [Image.new("L", (24, 20), grey) for grey in (10, 200)]
    for kind in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], lossless=True)
        scan = read_scan(tmp_path / f"a.{kind}")
        assert scan.slices.shape[0] == 1 and "2 frames; the first one is used" in scan.notes[0]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_damaged_exif_block_is_named(tmp_path, suffix):
    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(RGB).save(path, exif=b"junkjunk", lossless=True)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.slices, [RGB])
    assert scan.notes == (f"damaged.{suffix} has a damaged EXIF block: the picture is taken as it is stored.",)


def test_gzip_under_every_name(tmp_path):
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "png")
    for name in ("a.png.gz", "a.png", "a"):
        (tmp_path / name).write_bytes(gzip.compress(content.getvalue()))
        np.testing.assert_array_equal(read_scan(tmp_path / name).slices, [RGB])
    (tmp_path / "half.gz").write_bytes(gzip.compress(content.getvalue())[:-200])
    with pytest.raises(ValueError, match="half.gz"):
        read_scan(tmp_path / "half.gz")
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"no image, but words"))
    with pytest.raises(ValueError, match="text.gz is not an image") as caught:
        read_scan(tmp_path / "text.gz")
    assert "/tmp" not in str(caught.value).replace(str(tmp_path), "")
    (tmp_path / "twice.gz").write_bytes(gzip.compress(gzip.compress(content.getvalue())))
    with pytest.raises(ValueError, match="twice.gz"):
        read_scan(tmp_path / "twice.gz")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"NRRD0004\ntype: short\n", "an NRRD file; save it as NIfTI"),
        (b"ObjectType = Image\nNDims = 3\n", "a MetaImage file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "broken|not an image|HEIC"),
    ],
)
def test_other_formats_are_named(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.png.*({reason})"):
        read_scan(tmp_path / "a.png")


def test_the_files_of_nested_folders(tmp_path):
    save_dicom(make_dicom(GREY), tmp_path / "ST0" / "IM000001")
    save_dicom(make_dicom(GREY), tmp_path / "ST0" / "1.2.840.113619.2")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.fromarray(GREY).save(tmp_path / "deep" / "er" / "a.png")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "README").write_text("words")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "b.png").write_bytes(b"junk")
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    found = [path.relative_to(tmp_path).as_posix() for (path,) in list_groups(tmp_path)]
    assert found == ["ST0/1.2.840.113619.2", "ST0/IM000001", "deep/er/a.png"]


def test_a_folder_or_zip_without_dicom_says_what_it_holds(tmp_path):
    (tmp_path / "folder").mkdir()
    Image.fromarray(GREY).save(tmp_path / "folder" / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "folder" / "a.png", "x/a.png")
    for path in (tmp_path / "folder", tmp_path / "a.zip", [tmp_path / "folder" / "a.png"] * 2):
        with pytest.raises(ValueError, match="no DICOM file in it, but a.png; give such a file by itself"):
            read_scan(path)


def test_errors_name_the_file_and_the_log_has_the_traceback(tmp_path, caplog, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")

    def fail(*args, **kwargs):
        raise struct_error

    for struct_error in (
        KeyError("x"),
        IndexError(),
        RecursionError("deep"),
        AssertionError(),
        MemoryError(),
        OSError(5, "Input/output error"),
    ):
        caplog.clear()
        monkeypatch.setattr("lvit_hf.io.pictures.pil_to_array", fail)
        with pytest.raises(ValueError, match="a.png") as caught:
            read_scan(tmp_path / "a.png")
        assert "\n" not in str(caught.value) and len(str(caught.value)) > len(str(tmp_path / "a.png")) + 5
        [record] = [record for record in caplog.records if record.exc_info]
        assert record.levelno == logging.ERROR and record.exc_info[1] is struct_error


def test_a_traceback_is_not_printed_where_nobody_asked_for_a_log(tmp_path, capfd):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(ValueError, match="a.png"):
        read_scan(tmp_path / "a.png")
    assert "Traceback" not in capfd.readouterr().err


# Masks


def test_a_mask_is_read_alike_from_every_file(tmp_path):
    disk = np.hypot(*np.mgrid[-15:15, -20:20]) < 11
    white = Image.fromarray(disk.astype(np.uint8) * 255)
    white.save(tmp_path / "a.png")
    white.save(tmp_path / "b.jpg", quality=80)
    white.save(tmp_path / "c.tif", compression="tiff_lzw")
    Image.fromarray((disk[..., None] * np.uint8([0, 0, 255])).astype(np.uint8)).save(tmp_path / "d.tif")
    tifffile.imwrite(tmp_path / "e.tif", disk.astype(np.uint16))
    tifffile.imwrite(tmp_path / "f.tif", disk.astype(np.float32))
    save_dicom(make_dicom(disk.astype(np.uint8)), tmp_path / "g.dcm")
    save_dicom(make_dicom(disk.astype(np.int16) * 7), tmp_path / "h.dcm")
    (tmp_path / "i.png.gz").write_bytes(gzip.compress((tmp_path / "a.png").read_bytes()))
    for path in sorted(Path(tmp_path).iterdir()):
        np.testing.assert_array_equal(read_mask(path), [disk], err_msg=path.name)


def test_a_stack_of_masks(tmp_path):
    masks = np.random.default_rng(0).random((3, 30, 40)) > 0.5
    tifffile.imwrite(tmp_path / "a.tif", masks.astype(np.uint8), photometric="minisblack")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), masks)
    first, *others = [Image.fromarray(mask) for mask in masks]
    first.save(tmp_path / "b.tif", save_all=True, append_images=others)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.tif"), masks)


def test_a_stack_of_coloured_masks(tmp_path):
    masks = np.random.default_rng(0).random((3, 30, 40)) > 0.5
    colours = masks[..., None] * np.uint8([[[[200, 0, 0]]], [[[0, 90, 0]]], [[[0, 0, 255]]]])
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), masks)


LABELED = np.kron(np.array([[0, 1, 0], [2, 2, 0]], np.uint8), np.ones((16, 16), np.uint8))
PALETTED = Image.fromarray(LABELED).convert("P")
PALETTED.putpalette([0, 0, 0, 200, 30, 30, 255, 255, 255])
BLACK = PALETTED.copy()
BLACK.putpalette([0] * 9)
OPAQUE = Image.merge("LA", [Image.fromarray((LABELED > 0) * np.uint8(120)), Image.new("L", (48, 32), 255)])
CLEAR = Image.merge("LA", [Image.new("L", (48, 32), 255), Image.fromarray(LABELED * np.uint8(127))])
MODES = {
    "1 bit": Image.fromarray(LABELED > 0),
    "grey": Image.fromarray((LABELED > 0) * np.uint8(99)),
    "two greys": Image.fromarray(LABELED * np.uint8(127)),
    "labels": Image.fromarray(LABELED),
    "palette": PALETTED,
    "a black palette": BLACK,
    "colour": PALETTED.convert("RGB"),
    "grey with opacity": OPAQUE,
    "colour with opacity": OPAQUE.convert("RGBA"),
    "nothing but opacity": CLEAR,
    "16 bits": Image.fromarray((LABELED > 0) * np.uint16(30000)),
}
REFUSED = ("two greys", "a black palette", "nothing but opacity")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("name", MODES)
def test_a_tiff_file_is_what_its_png_is(tmp_path, name, compression):
    """As an image and as a mask, also where it is refused."""
    MODES[name].save(tmp_path / "a.png")
    MODES[name].save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").slices, read_scan(tmp_path / "a.png").slices)
    said = []
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        try:
            mask, rule = explain_mask(path)
            said.append((mask.tolist(), rule))
        except ValueError as error:
            said.append((str(error).replace(path.name, ""), ""))
    assert said[0] == said[1] and (name in REFUSED) == (said[0][1] == "")

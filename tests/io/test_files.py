"""What files are called, told of and begin with: small functions, each as a table."""

import logging

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from lvit_hf.io.checkpoints import find_checkpoint, list_shipped
from lvit_hf.io.errors import FileError, as_sentence, file_errors
from lvit_hf.io.examples import Example, read_examples
from lvit_hf.io.hub import explain_error, split_revision
from lvit_hf.io.kinds import is_dicom, is_nifti, is_tiff
from lvit_hf.io.readers import is_junk
from lvit_hf.io.scan import MAX_VOXELS, Scan, check_size, describe_left_out, name_some


def padded(content: bytes, place: int = 0, size: int = 540) -> bytes:
    return bytes(place) + content + bytes(size - place - len(content))


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        (padded(b"DICM", 128), {is_dicom}),
        (padded(b"DICM", 127), set()),
        (padded(b"\x08\x00\x05\x00CS"), {is_dicom}),
        (padded(b"\x00\x08\x00\x05CS"), {is_dicom}),
        (padded(b"\x08\x00\x00\x01UI"), {is_dicom}),
        (padded(b"\x08\x00\x01\x01UI"), set()),  # elements of these groups have smaller numbers
        (padded(b"\x08\x00\x05\x00ZZ"), set()),
        (padded(b"\x09\x00\x05\x00CS"), set()),
        (padded(b"\x08\x00\x05\x00\x00\x01\x00\x00"), {is_dicom}),  # implicit, with a value of 256 bytes
        (padded(b"\x08\x00\x05\x00\x01\x01\x00\x00"), set()),
        (padded(b"\x00\x08\x00\x05\x00\x00\x00\x0a"), set()),  # big endian is never implicit
        (padded(b"\x08\x00\x05\x00CS", size=16), {is_dicom}),
        (padded(b"\x08\x00\x05\x00CS", size=15), set()),
        *((padded(magic, 344), {is_nifti}) for magic in (b"n+1\0", b"ni1\0")),
        *((padded(magic, 4), {is_nifti}) for magic in (b"n+2\0", b"ni2\0")),
        (padded(b"n+1\0", 344, size=348), {is_nifti}),
        (padded(b"n+1", 344, size=347), set()),
        *((padded(magic), {is_tiff}) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        (padded(b"II\0*"), set()),
        (b"", set()),
    ],
)
def test_a_file_is_known_by_what_it_begins_with(head, kinds):
    assert {known for known in (is_dicom, is_nifti, is_tiff) if known(head)} == kinds


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((MAX_VOXELS,), None),
        ((1, MAX_VOXELS // 2, 2), None),
        ((MAX_VOXELS + 1,), f"a has {MAX_VOXELS + 1:,} voxels, more than the {MAX_VOXELS:,} that are read"),
        ((2**40, 2**40), "more than"),  # which integers of 64 bits do not hold
        ((3, 0, 4), r"a has no pixels: its shape is \(3, 0, 4\)"),
        ((-1, 4), "no pixels"),
        ((), "no pixels"),
    ],
)
def test_what_does_not_fit_into_memory_or_is_nothing_is_refused(shape, sentence):
    if sentence is None:
        check_size("a", shape)
    else:
        with pytest.raises(FileError, match=sentence):
            check_size("a", shape)


def test_a_scan_has_its_slices_and_no_other():
    slices = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    scan = Scan(slices, spacing=(2, 3), slice_spacing=4)
    for index in range(2):
        np.testing.assert_array_equal(np.asarray(scan.image(index)), slices[index])
    assert scan.image().tobytes() == scan.image(0).tobytes()
    for index in (-1, 2):
        with pytest.raises(ValueError, match=f"There is no slice {index}: the file has 2, counted from 0"):
            scan.image(index)
    assert scan.known_spacing(2) == (2, 3) and scan.known_spacing(3) == (4, 2, 3)
    assert Scan(slices, (2, 3)).known_spacing(2) == (2, 3) and Scan(slices, (2, 3)).known_spacing(3) is None
    assert Scan(slices, slice_spacing=4).known_spacing(2) is None


def test_of_many_names_some_are_told():
    assert name_some(list("abcde")) == "a, b, c, d, e" and name_some(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert name_some(["a", "b"], 1) == "a and 1 more" and name_some(["\udcff.png"]) == "\ufffd.png"
    pairs = [("a", "a text"), ("b", "another size"), ("c", "a text")]
    assert describe_left_out(pairs) == ["Left out: a, c (a text).", "Left out: b (another size)."]
    junk = ("__MACOSX/a.png", "x/.hidden/a.png", "a/Thumbs.db", "x\\.hidden\\a.png", "desktop.ini", ".a.png")
    assert all(map(is_junk, junk)) and not any(map(is_junk, ("a/b.png", "../a.png", "thumbs.dbx/a.png", "a.b")))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("x"), "a.png is odd: 'x'."),
        (IndexError(), "a.png is odd: IndexError."),
        (ValueError("one line.\nanother"), "a.png is odd: one line."),
        (ValueError("a.png is no PNG."), "a.png is no PNG."),
        (ValueError("x" * 400), f"a.png is odd: {'x' * 300}."),
        (MemoryError(), "a.png needs more memory than there is."),
        (OSError(13, "Permission denied"), "a.png cannot be opened: Permission denied."),
        (OSError("cannot identify"), "a.png is odd: cannot identify."),
        (FileError("as it is"), "as it is"),
        (BaseException("a panic"), "a.png is odd: a panic."),
    ],
)
def test_what_a_library_raises_is_a_sentence_about_the_file(error, sentence):
    with pytest.raises(FileError) as caught, file_errors("a.png", "is odd"):
        raise error
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), FileNotFoundError(2, "x"), ModuleNotFoundError()]
)
def test_what_is_no_fault_of_a_file_passes(error, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(type(error)) as caught, file_errors("a.png"):
        raise error
    assert caught.value is error and not caplog.records


def test_errors_are_sentences_for_a_user():
    assert as_sentence(FileNotFoundError(2, "No such file", "a.png")) == "a.png does not exist."
    assert as_sentence(FileNotFoundError("There is no data set.")) == "There is no data set."
    missing = ModuleNotFoundError("No module named 'nibabel'", name="nibabel")
    assert as_sentence(missing, "medical") == "nibabel is not installed; this needs pip install 'lvit_hf[medical]'."


@pytest.mark.parametrize(
    ("table", "examples"),
    [
        ("image,text,tile_size\na.png,one,0\n", [("a.png", "one", None, "")]),
        ("label,tile_size,text,image\nCT,64,,x/a.png\n,0,b,c\n", [("x/a.png", "", 64, "CT"), ("c", "b", None, "")]),
        ("image,text,tile_size,label\na.png,one,0\n", [("a.png", "one", None, "")]),
        ("image,text,tile_size\n", "needs the columns image, text and tile_size"),
        ("image,text\na.png,one\n", "needs the columns"),
        ("image,text,tile_size\na.png,one,wide\n", "needs the columns"),
        ("image,text,tile_size\na.png\n", "needs the columns"),
        ("image,text,tile_size\n/etc/passwd,one,0\n", "names /etc/passwd, which is outside the folder"),
        ("image,text,tile_size\nx/../../a.png,one,0\n", "which is outside the folder"),
    ],
)
def test_examples_are_files_of_their_folder(tmp_path, table, examples):
    (tmp_path / "examples.csv").write_text(table)
    if isinstance(examples, str):
        with pytest.raises(ValueError, match=examples):
            read_examples(tmp_path)
    else:
        assert read_examples(tmp_path) == [Example(tmp_path / name, *values) for name, *values in examples]


def test_a_checkpoint_is_a_folder_a_shipped_one_or_a_name_on_the_hub(tmp_path):
    shipped = list_shipped()
    assert shipped and all((path / "config.json").is_file() and path.name == name for name, path in shipped.items())
    for name, found in [
        (tmp_path, str(tmp_path)),
        *((name, str(path)) for name, path in shipped.items()),
        *((name, name) for name in ("user/a.b-c_d", "user/name@v1.0", "user/name@a/branch")),
    ]:
        assert find_checkpoint(name) == found
    for name in ("lvit", "a/b/c", "/a/b", "user/name@", "user/n m", str(tmp_path / "none")):
        with pytest.raises(ValueError, match=f"There is no checkpoint {name}. .* or one of {', '.join(shipped)}"):
            find_checkpoint(name)


def test_a_revision_follows_the_name_unless_that_is_a_folder(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert split_revision("user/name") == ("user/name", "main") == split_revision("user/name@")
    assert split_revision("user/name@v1@x") == ("user/name", "v1@x")
    assert split_revision(tmp_path / "a@b") == (str(tmp_path / "a@b"), "main")


def test_an_error_is_of_the_hub_if_another_behind_it_is():
    def chain(*errors: Exception) -> Exception:
        for error, cause in zip(errors, errors[1:]):
            error.__cause__ = cause
        return errors[0]

    for error in (LocalEntryNotFoundError("x"), OfflineModeIsEnabled("x")):
        for raised in (error, chain(OSError("y"), error), chain(ValueError("z"), OSError("y"), error)):
            assert "user/name is not in the cache" in (explain_error(raised, "user/name") or "")
    assert explain_error(chain(ValueError("z"), OSError("y")), "user/name") is None
    try:
        try:
            raise LocalEntryNotFoundError("x")
        except LocalEntryNotFoundError:
            raise ValueError("while it was handled")  # noqa: B904
    except ValueError as raised:
        assert explain_error(raised, "user/name")

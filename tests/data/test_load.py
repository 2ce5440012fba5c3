import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image
from tiny_lvit import tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.data.check import check_data, read_all_splits
from lvit_hf.data.load import load_data, take_evenly


CAPTIONS = ["one infected area, upper left lung", "two infected areas", ""]
SUFFIXES = [".webp", ".png", ".tiff"]  # without loss, so that all sources hold the same pixels
FOLDERS = {"train": "Train_Folder", "valid": "Val_Folder"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def make_pair(seed: int) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (12 + seed, 20, 3), dtype=np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (2, 3, 10, 8))
    return image, mask


def save_pairs(folder: Path, first_seed: int, image_folder: str, mask_folder: str, mask_prefix: str = ""):
    """Three images and masks, `case-0` to `case-2`, each image in another format."""
    for subfolder in (image_folder, mask_folder):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for number, suffix in enumerate(SUFFIXES):
        image, mask = make_pair(first_seed + number)
        lossless = {"lossless": True} if suffix == ".webp" else {}
        image.save(folder / image_folder / f"case-{number}{suffix}", **lossless)
        mask.save(folder / mask_folder / f"{mask_prefix}case-{number}.png")


def write_reference_layout(folder: Path, mask_prefix: str = ""):
    for seed, name in ((0, "Train_Folder"), (3, "Val_Folder")):
        save_pairs(folder / name, seed, "img", "labelcol", mask_prefix)
        names = [f"{mask_prefix}case-{number}.png" for number in range(3)]
        table = pandas.DataFrame({"Image": names, "Description": CAPTIONS})
        table.to_excel(folder / name / "some_text.xlsx", index=False)


def write_reference_layout_of_qata(folder: Path):
    write_reference_layout(folder, mask_prefix="mask_")


def write_csv_files(folder: Path):
    for seed, split in ((0, "train"), (3, "valid")):
        save_pairs(folder / split, seed, "images", "masks")
        lines = [
            f'{split}/images/case-{number}{SUFFIXES[number]}, {split}/masks/case-{number}.png,"{CAPTIONS[number]}"'
            for number in range(3)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["image,mask,text", *lines]), encoding="utf-8-sig")


def write_image_folder(folder: Path):
    for seed, split in ((0, "train"), (3, "valid")):
        save_pairs(folder / split, seed, ".", "masks")
        lines = [f'case-{n}{SUFFIXES[n]},masks/case-{n}.png,"{CAPTIONS[n]}"' for n in range(3)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,mask_file_name,text", *lines]))


def write_parquet(folder: Path):
    folder.mkdir()
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), text=datasets.Value("string"))
    for seed, split in ((0, "train"), (3, "valid")):
        pairs = [make_pair(seed + number) for number in range(3)]
        rows = {"image": [pair[0] for pair in pairs], "mask": [pair[1] for pair in pairs], "text": CAPTIONS}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


WRITERS = [
    write_reference_layout,
    write_reference_layout_of_qata,
    write_csv_files,
    write_image_folder,
    write_parquet,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_source_gives_the_same_rows(write, tmp_path):
    write(tmp_path / "data")
    for seed, split in ((0, "train"), (3, "valid")):
        data = load_data(str(tmp_path / "data"), split)
        assert len(data) == 3 and {"image", "mask", "text", "id"} <= set(data.column_names)
        assert data["text"][:] == CAPTIONS
        assert len(set(data["id"])) == 3
        for number, row in enumerate(data):
            image, mask = make_pair(seed + number)
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
            np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask))
    with pytest.raises(FileNotFoundError, match="test|Test_Folder"):
        load_data(str(tmp_path / "data"), "test")


def test_a_csv_file_may_hold_all_splits_and_other_columns(tmp_path, caplog):
    save_pairs(tmp_path, 0, "images", "masks")
    lines = [
        "split,image,mask,text,paraphrase,id",
        "train,images/case-0.webp,masks/case-0.png,one,another,first",
        "valid,images/case-1.png,masks/case-1.png,NA,,second",
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    [row] = load_data(str(tmp_path / "table.csv"), "train")
    assert (row["id"], row["text"], row["paraphrase"]) == ("first", "one", "another")
    [row] = load_data(str(tmp_path / "table.csv"), "valid")
    assert (row["id"], row["text"]) == ("second", "NA")
    assert not caplog.records
    (tmp_path / "table.csv").write_text("image,mask,text\nimages/case-0.webp,masks/case-0.png,one\n")
    assert len(load_data(str(tmp_path / "table.csv"), "valid")) == 1
    assert "all of its rows are taken for valid" in caplog.text


def test_all_bad_rows_of_the_reference_layout_are_named_at_once(tmp_path):
    write_reference_layout(tmp_path)
    folder = tmp_path / "Train_Folder"
    (folder / "labelcol" / "case-0.png").unlink()
    make_pair(7)[0].save(folder / "img" / "new.png")
    make_pair(7)[0].save(folder / "img" / "case-1.bmp")
    make_pair(7)[1].save(folder / "labelcol" / "lonely.png")
    with pytest.raises(ValueError) as error:
        load_data(str(tmp_path), "train")
    sentences = str(error.value).splitlines()[1:]
    assert sorted(sentences) == sorted(
        [
            "- img/case-1.png and case-1.bmp have one name.",
            "- img/case-0.webp has no mask.",
            "- img/new.png has no mask.",
            "- img/new.png has no caption.",
            "- labelcol/lonely.png has no image.",
        ]
    )
    assert len(load_data(str(tmp_path), "valid")) == 3


@pytest.mark.parametrize(("write", "prefix"), [(write_csv_files, "train/images"), (write_image_folder, "train")])
def test_all_missing_files_of_a_table_are_named_at_once(write, prefix, tmp_path):
    write(tmp_path)
    (tmp_path / prefix / "case-0.webp").unlink()
    (tmp_path / prefix / "case-2.tiff").unlink()
    (tmp_path / "train" / "masks" / "case-1.png").unlink()
    with pytest.raises(ValueError) as error:
        load_data(str(tmp_path), "train")
    for name in ("case-0: the image", "case-2: the image", "case-1: the mask"):
        assert name in str(error.value)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/at/all does not exist"):
        load_data("nowhere/at/all", "train")
    with pytest.raises(ValueError, match="train, valid, test"):
        load_data(str(tmp_path), "validation")
    table = tmp_path / "table.csv"
    for content, message in (
        ("image,text\na.png,b\n", "lacks the columns"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        ("image,mask,text\n", "has no rows"),
        ("image,mask,text,split\na,b,c,train\n", 'no row whose column split says "valid"'),
    ):
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_data(str(table), "valid")
    write_reference_layout(tmp_path / "reference")
    workbook = tmp_path / "reference" / "Val_Folder" / "some_text.xlsx"
    workbook.write_bytes(b"no workbook")
    with pytest.raises(ValueError, match="is no workbook"):
        load_data(str(tmp_path / "reference"), "valid")
    pandas.DataFrame({"Name": ["case-0"]}).to_excel(workbook)
    with pytest.raises(ValueError, match="needs the columns Image and Description"):
        load_data(str(tmp_path / "reference"), "valid")
    pandas.DataFrame({"Image": ["case-0"], "Description": ["a"]}).to_excel(workbook)
    shutil.rmtree(tmp_path / "reference" / "Val_Folder" / "labelcol")
    with pytest.raises(FileNotFoundError, match="labelcol"):
        load_data(str(tmp_path / "reference"), "valid")
    for name in ("img", "labelcol"):
        shutil.rmtree(tmp_path / "reference" / "Val_Folder" / name, ignore_errors=True)
        (tmp_path / "reference" / "Val_Folder" / name).mkdir()
    with pytest.raises(ValueError, match="has no rows"):
        load_data(str(tmp_path / "reference"), "valid")
    workbook.unlink()
    with pytest.raises(FileNotFoundError, match="must hold one workbook"):
        load_data(str(tmp_path / "reference"), "valid")


def test_several_captions_for_one_image_are_a_problem(tmp_path):
    write_reference_layout(tmp_path)
    table = pandas.DataFrame(
        {"Image": [f"case-{number}.png" for number in (0, 1, 2, 2)], "Description": ["a", "b", "c", "d"]}
    )
    table.to_excel(tmp_path / "Train_Folder" / "some_text.xlsx", index=False)
    with pytest.raises(ValueError, match="several captions for case-2"):
        load_data(str(tmp_path), "train")


def test_a_limit_spreads_over_the_split():
    data = datasets.Dataset.from_dict({"number": range(10)})
    assert take_evenly(data, 4)["number"][:] == [0, 2, 5, 7]
    assert len(take_evenly(data, None)) == len(take_evenly(data, 20)) == 10


@pytest.fixture
def flawed(tmp_path) -> Path:
    """A data set in which something is wrong with almost every row."""
    folder = tmp_path / "flawed"
    write_csv_files(folder)
    train = folder / "train"
    (train / "images" / "case-1.png").write_bytes((train / "images" / "case-1.png").read_bytes()[:60])
    Image.new("L", (20, 14)).save(train / "masks" / "case-2.png")  # empty
    Image.new("L", (9, 9), 255).save(folder / "valid" / "masks" / "case-0.png")  # of another size
    Image.fromarray(np.full((16, 20), 3, np.uint8)).save(folder / "valid" / "masks" / "case-1.png")  # dim
    make_pair(0)[0].save(folder / "valid" / "images" / "again.bmp")  # case-0 of train
    make_pair(0)[1].save(folder / "valid" / "masks" / "again.png")
    make_pair(9)[0].save(folder / "valid" / "images" / "orphan.png")
    long_caption = " ".join(["one two"] * 6)
    with (folder / "valid.csv").open("a") as file:
        file.write(f"\nvalid/images/again.bmp,valid/masks/again.png,{long_caption} ☃ ☃\n")
        file.write("valid/images/gone.png,valid/masks/again.png,x\n")
    return folder


def test_the_check_finds_every_flaw(flawed):
    splits = read_all_splits(str(flawed))
    report = check_data(str(flawed), splits, tiny_processor(), num_text_vectors=10)
    train, valid = report["splits"]["train"], report["splits"]["valid"]
    assert (train["images"], valid["images"]) == (3, 4)
    assert [text.split(":")[0] for text in train["problems"]] == ["train/images/case-1"]
    assert "cannot be opened" in train["problems"][0]
    gone, mismatch = sorted(valid["problems"], key=lambda text: "9 x 9" in text)
    assert gone.startswith("valid/images/gone: the image")
    assert "9 x 9 pixels and the image 20 x 15" in mismatch
    assert train["empty_masks"] == ["train/images/case-2"]
    assert valid["rules"]["the value 3"] == 1
    assert train["sizes"] == {"20 x 12": 1, "20 x 14": 1}
    assert report["duplicates"] == [["train/train/images/case-0", "valid/valid/images/again"]]
    assert report["orphans"] == ["valid/images/orphan.png"]
    captions = valid["captions"]["text"]
    assert (captions["distinct"], captions["without"]) == (3, ["valid/images/case-2"])
    assert captions["unknown_words"] == {"☃": 1}
    assert list(captions["too_long"]) == [" ".join(["one two"] * 6) + " ☃ ☃"] and captions["longest"] == 14


def run_check(*arguments):
    return CliRunner().invoke(app, ["data", "check", *(str(argument) for argument in arguments)])


def test_the_command_shows_problems_and_fails(flawed, checkpoint, tmp_path):
    out = tmp_path / "out"
    result = run_check(flawed, "--model", checkpoint, "--out", out)
    assert result.exit_code == 1 and "Traceback" not in result.output
    for name in ("case-1", "gone", "9 x 9", "orphan.png", "☃", "case-2"):
        assert name in result.stdout
    assert sorted(os.listdir(out)) == ["contact_sheet.png", "data_check.json", "data_check.md"]
    report = json.loads((out / "data_check.json").read_text(encoding="utf-8"))
    assert list(report["splits"]) == ["train", "valid"]
    assert min(Image.open(out / "contact_sheet.png").size) > 300


def test_the_command_is_content_with_a_sound_data_set(checkpoint, tmp_path):
    write_reference_layout(tmp_path / "data")
    result = run_check(tmp_path / "data", "--model", checkpoint)
    assert result.exit_code == 0, result.output
    assert "## train: 3 images" in result.stdout and "problems" not in result.stdout


def test_the_command_says_that_there_is_no_data_set(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing" / "data", tmp_path / "empty"):
        result = run_check(path, "--model", checkpoint)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ") and "Traceback" not in result.output

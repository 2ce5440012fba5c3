"""Small data sets in each layout that is read."""

from pathlib import Path

import datasets
import numpy as np
import pandas
from PIL import Image


CAPTIONS = ["one infected area, upper left lung", "two infected areas", ""]
SUFFIXES = [".webp", ".png", ".tiff"]  # without loss, so that all sources hold the same pixels
FOLDERS = {"train": "Train_Folder", "valid": "Val_Folder"}


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

"""Feeds the readers with small real files that were damaged, and reports what is no sentence, hangs or keeps memory.

    python tools/fuzz.py --count 20000 --seed 0 --out fuzz-findings

Every format has a few seeds. An input is a seed with bytes changed, cut out, doubled, swapped or cut off, or with
parts of another seed. Inputs are read by workers, so that a crash or a hang of a library is found too; what was found
is written to the folder. The exit status is 1 if anything was.
"""

import argparse
import contextlib
import ctypes
import gc
import gzip
import io
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file


LIMIT_S = 5.0  # of the processor
HANG_S = 120.0  # without a word
# Per 1,000 inputs; allocators keep some.
LIMIT_GROWTH_MB = 100
BATCH = 500
LARGEST_SEED = 60_000
LONGEST_CHANGE = 64
DICOM_SEEDS = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEG-lossy.dcm",
    "JPGExtended.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "SC_rgb_rle_2frame.dcm",
    "image_dfl.dcm",
    "no_meta.dcm",
    "rtdose.dcm",
    "reportsi.dcm",
    "liver_1frame.dcm",
    "nested_priv_SQ.dcm",
)
INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80",
    b"\x01\0\0\0",
    b"nan ",
    b"-1",
    b"1e99",
)


def make_seeds() -> dict[str, bytes]:
    """Small sound files by name."""
    import lvit_hf.io.pictures  # noqa: F401  which knows HEIC

    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (24, 20), np.uint8)
    deep = rng.integers(0, 4096, (24, 20)).astype(np.uint16)
    color = np.dstack([grey, grey[::-1], grey[:, ::-1]])
    pictures = {"grey": grey, "deep": deep, "color": color, "mask": grey > 127}
    seeds = {}
    for name, array in pictures.items():
        for suffix in ("png", "tif", "jpg", "bmp", "webp", "gif", "jp2", "heic", "avif"):
            content = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):  # not every format has every mode
                Image.fromarray(array).save(
                    content, {"tif": "tiff", "jpg": "jpeg", "jp2": "jpeg2000", "heic": "heif"}.get(suffix, suffix)
                )
                seeds[f"{name}.{suffix}"] = content.getvalue()
    palette = Image.fromarray(color).quantize(8)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: tuple[tuple[str, Image.Image, dict[str, Any]], ...] = (
        ("palette.png", palette, {}),
        ("turned.jpg", Image.fromarray(color), {"exif": exif, "format": "jpeg"}),
        ("turned.png", Image.fromarray(grey), {"exif": exif}),
        ("lzw.tif", Image.fromarray(grey), {"compression": "tiff_lzw", "format": "tiff"}),
    )
    for name, image, options in made:
        content = io.BytesIO()
        image.save(content, **{"format": "png", **options})
        seeds[name] = content.getvalue()
    seeds |= _make_tiffs(deep, color) | _make_niftis(rng) | _make_dicoms(deep)
    return {name: content for name, content in seeds.items() if len(content) <= LARGEST_SEED}


def _make_tiffs(deep: np.ndarray, color: np.ndarray) -> dict[str, bytes]:
    import tifffile

    seeds = {}
    for name, array, options in (
        ("stack.tif", np.stack([deep] * 3), {}),
        ("float.tif", deep.astype(np.float32), {}),
        ("deepcolor.tif", color.astype(np.uint16) * 16, {"photometric": "rgb"}),
        ("white.tif", deep, {"photometric": "miniswhite", "compression": "zlib"}),
        ("imagej.tif", np.stack([deep] * 2), {"imagej": True}),
        ("big.tif", deep, {"bigtiff": True, "byteorder": ">"}),
    ):
        content = io.BytesIO()
        tifffile.imwrite(content, array, **options)
        seeds[name] = content.getvalue()
    return seeds


def _make_niftis(rng: np.random.Generator) -> dict[str, bytes]:
    seeds = {}
    volume = rng.normal(1000, 200, (9, 8, 5))
    for kind in ("uint8", "int16", "float32", "int64"):
        image = nibabel.Nifti1Image(
            (volume / 8 if kind == "uint8" else volume).astype(kind), np.diag([1, 2, 3, 1]), dtype=kind
        )
        image.set_qform(image.affine, 1)
        seeds[f"{kind}.nii"] = image.to_bytes()
        seeds[f"{kind}.nii.gz"] = gzip.compress(image.to_bytes())
    seeds["two.nii"] = nibabel.Nifti2Image(volume.astype(np.float32), np.eye(4)).to_bytes()
    colors = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    seeds["color.nii"] = nibabel.Nifti1Image(colors, np.eye(4)).to_bytes()
    return seeds


def _make_dicoms(deep: np.ndarray) -> dict[str, bytes]:
    seeds = {}
    for name in DICOM_SEEDS:
        with contextlib.suppress(ValueError):  # not there in this version
            seeds[name] = Path(str(get_testdata_file(name))).read_bytes()
    seeds["no_preamble.dcm"] = seeds["CT_small.dcm"][132:]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed, warnings.catch_warnings(action="ignore"):
        for number in range(3):
            dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
            dataset.Rows, dataset.Columns = deep.shape
            dataset.PixelData = deep.tobytes()
            dataset.SOPInstanceUID += f".{number}"
            dataset.ImagePositionPatient = [-158, -179, -75 + 5 * number]
            content = io.BytesIO()
            dataset.save_as(content)
            packed.writestr(f"IM{number}", content.getvalue())
    seeds["series.zip"] = archive.getvalue()
    return seeds


def mutate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A damaged copy: one to eight changes, more of them near the beginning, where headers are."""
    data = content
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        start = int(len(data) * (rng.random() ** 3 if rng.random() < 0.5 else rng.random()))
        end = start + rng.randint(1, LONGEST_CHANGE)
        elsewhere = rng.randrange(len(other) or 1)
        piece = rng.choice(INTERESTING)
        changed = bytes(value ^ 1 << rng.randrange(8) for value in data[start : start + 1])
        data = rng.choice(
            (
                data[:start] + changed + data[start + 1 :],
                data[:start] + rng.randbytes(1) + data[start + 1 :],
                data[:start] + piece + data[start + len(piece) :],
                data[:start] + data[end:],
                data[:end] + data[start:],
                data[:start] + other[elsewhere : elsewhere + end - start] + data[end:],
                data[:start] + data[end : 2 * end - start] + data[start:end] + data[2 * end - start :],
                data[:start] if rng.random() < 0.3 else data,
            )
        )
    return data


def make_input(number: int, seed: int, seeds: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and the content of an input; the same for the same numbers."""
    rng = random.Random(f"{seed}/{number}")
    name, other = rng.choice(list(seeds)), rng.choice(list(seeds))
    content = mutate(seeds[name], seeds[other], rng)
    if rng.random() < 0.05:  # under another name
        name = f"{Path(name).stem}{Path(other).suffix}"
    return f"{number}-{name}", content


def try_input(name: str, content: bytes, folder: Path) -> str | None:
    """What is wrong with how the readers take an input; `None` if they read it or say a sentence."""
    from lvit_hf import LViTImageProcessor
    from lvit_hf.io.readers import read_mask, read_scan

    path = folder / name
    path.write_bytes(content)
    readers: dict[str, Callable] = {"read_scan": read_scan, "read_mask": read_mask}
    if not any(part in name for part in (".dcm", ".nii", ".zip")):
        readers["processor"] = lambda path: LViTImageProcessor()(path, return_tensors="pt")
    try:
        for reader_name, reader in readers.items():
            start = time.process_time()  # other work on the machine does not count
            try:
                reader(path)
            except ValueError as error:
                sentence = str(error)
                if "\n" in sentence or len(sentence) < 10:
                    return f"{reader_name}: no sentence: {sentence!r}"
            except Exception as error:
                return f"{reader_name}: {type(error).__name__}: {error}"
            if (duration := time.process_time() - start) > LIMIT_S:
                return f"{reader_name}: {duration:.1f} s"
    finally:
        path.unlink(missing_ok=True)
    return None


def work(start: int, stop: int, seed: int, pipe):
    """Tries inputs, telling before each one which it is."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = 20_000_000
    seeds = make_seeds()
    warm = None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(start, stop):
            name, content = make_input(number, seed, seeds)
            pipe.send(("begin", number, None))
            found = try_input(name, content, Path(folder))
            if found:
                pipe.send(("found", number, found))
            if number == start + (stop - start) // 5:
                warm = _memory()
    pipe.send(("end", stop, 0.0 if warm is None else _memory() - warm))


def _memory() -> float:
    """Resident memory of this process in MB, without what the allocator has but keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # not every system's C library has it
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def run(start: int, stop: int, seed: int) -> tuple[list[tuple[int, str]], float]:
    """Findings by the numbers of their inputs, and the growth of memory in MB."""
    findings, growth = [], 0.0
    while start < stop:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.get_context("fork").Process(target=work, args=(start, stop, seed, sender))
        worker.start()
        sender.close()
        current = start
        while True:
            try:
                if not receiver.poll(HANG_S):
                    findings.append((current, "hangs"))
                    worker.kill()
                    break
                kind, number, value = receiver.recv()
            except EOFError:
                findings.append((current, "the process died"))
                break
            if kind == "end":
                current, growth = stop - 1, value
                break
            current = number
            if kind == "found":
                findings.append((number, value))
        worker.join()
        start = current + 1
    return findings, growth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    import lvit_hf.io.dicom
    import lvit_hf.io.nifti
    import lvit_hf.io.readers  # noqa: F401  so that each worker has them

    seeds, total = make_seeds(), 0
    kinds: Counter[str] = Counter()
    print(f"{len(seeds)} seeds")
    for start in range(0, arguments.count, BATCH):
        stop = min(start + BATCH, arguments.count)
        findings, growth = run(start, stop, arguments.seed)
        if growth > LIMIT_GROWTH_MB * (stop - start) / 1000:
            findings.append((start, f"memory grew by {growth:.0f} MB in {stop - start} inputs"))
        for number, what in findings:
            total += 1
            kinds[what[:80]] += 1
            arguments.out.mkdir(parents=True, exist_ok=True)
            name, content = make_input(number, arguments.seed, seeds)
            (arguments.out / name).write_bytes(content)
            print(f"{name}: {what}", flush=True)
        print(f"{stop} inputs, {total} findings, memory {growth:+.1f} MB", flush=True)
    for what, count in kinds.most_common():
        print(f"{count:6} {what}")
    sys.exit(bool(total))


if __name__ == "__main__":
    main()

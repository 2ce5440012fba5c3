"""How well a checkpoint tells images of its own kinds from photographs and from other medical images.

    python benchmarks/scope.py lvit-small QATA KVASIR MONUSEG:250 --other BUSI --volumes HIPPOCAMPUS/valid/images

The other images are those that scikit-image, scikit-learn, pydicom (and pydicom-data) and nibabel carry, and the
middle slices of volumes.
"""

import argparse
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from lvit_hf.data.load import load_data
from lvit_hf.inference.notices import KINDS
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.readers import read_scan
from lvit_hf.training.batches import ValidationDataset


PHOTOGRAPHS = ["astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "horse"]
PHOTOGRAPHS += ["hubble_deep_field", "moon", "page", "rocket", "text"]
MEDICAL = ["cell", "immunohistochemistry", "microaneurysms", "retina", "shepp_logan_phantom"]
VOLUMES = ["anatomical.nii"]
SHOWN = 5


def load_pictures(names: list[str]) -> Iterator[tuple[str, Image.Image]]:
    for name in names:
        pixels = getattr(skimage.data, name)()
        bright = pixels * 255 if pixels.max() <= 1 else pixels
        yield name, Image.fromarray(np.asarray(bright, np.uint8)).convert("RGB")


def read_dicom() -> Iterator[tuple[str, Image.Image]]:
    """Images of DICOM files that are of none of the kinds by their modality."""
    known = set().union(*(modalities for _, modalities in KINDS.values()))
    places = (("pydicom.data", "test_files"), ("data_store", "data"))  # the second is pydicom-data
    folders = [Path(str(files(package) / name)) for package, name in places]
    for path in sorted({path.name: path for folder in folders for path in folder.glob("*.dcm")}.values()):
        try:
            scan = read_scan(path)
        except ValueError:  # some are broken on purpose, others hold no image
            continue
        if scan.modality not in known:
            yield path.name, scan.image(len(scan) // 2).convert("RGB")


def read_volumes(paths: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """The middle slice of each volume."""
    for path in paths:
        scan = read_scan(path)
        yield path.name, scan.image(len(scan) // 2).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", help="DATA[:TILE], a data set of each kind")
    parser.add_argument("--other", help="a data set of another kind")
    parser.add_argument("--volumes", type=Path, help="a folder of NIfTI files of another kind")
    parser.add_argument(
        "--elsewhere", type=Path, action="append", default=[], help="a folder of images of one's kinds"
    )
    parser.add_argument("--limit", type=int, default=200, help="validation images of each data set")
    arguments = parser.parse_args()
    segmenter = Segmenter.from_pretrained(arguments.model)

    def judge(images: list[Image.Image]) -> np.ndarray:
        results = segmenter.segment(images, describe=False)
        return np.array([result.scope.score for result in results if result.scope is not None])

    known = []
    for argument in arguments.data:
        path, _, tile = argument.partition(":")
        rows = ValidationDataset(load_data(path, "valid"), int(tile) if tile else None, arguments.limit)
        known.append(judge([rows[index]["image"] for index in range(len(rows))]))
        print(f"{Path(path).name}: {100 * np.mean(known[-1] >= 0.5):.1f} % of {len(rows)} images in scope")
    for folder in arguments.elsewhere:
        images = [read_scan(path).image(0).convert("RGB") for path in sorted(folder.iterdir())]
        print(f"{folder.name}: {100 * np.mean(judge(images) >= 0.5):.1f} % of {len(images)} images in scope")
    shipped = Path(nibabel.__file__).parent / "tests" / "data"
    volumes = [shipped / name for name in VOLUMES]
    volumes += sorted(arguments.volumes.glob("*.nii*")) if arguments.volumes else []
    samples = [("sample", Image.fromarray(pixels)) for pixels in load_sample_images().images]
    others = {
        "photographs": [*load_pictures(PHOTOGRAPHS), *samples],
        "other medical images": [*load_pictures(MEDICAL), *read_dicom(), *read_volumes(volumes)],
    }
    if arguments.other:
        rows = load_data(arguments.other, "valid")
        others[Path(arguments.other).name] = list(zip(rows["id"], (image.convert("RGB") for image in rows["image"])))
    for name, pairs in others.items():
        scores = judge([image for _, image in pairs])
        own = np.concatenate(known)
        area = roc_auc_score(np.r_[np.ones(len(own)), np.zeros(len(scores))], np.r_[own, scores])
        nearest = ", ".join(f"{pairs[index][0]} {scores[index]:.2f}" for index in scores.argsort()[::-1][:SHOWN])
        print(f"{name}: AUROC {area:.3f}, {100 * np.mean(scores < 0.5):.1f} % of {len(pairs)} out of scope")
        print(f"  nearest: {nearest}")


if __name__ == "__main__":
    main()

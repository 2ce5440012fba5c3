"""Time and peak memory of `lvit predict` on a volume of noise that is much larger than the network's patch."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lvit-small-hippocampus", help="a checkpoint of three dimensions")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 200), help="sides in voxels of 1 mm")
    arguments = parser.parse_args()
    values = np.random.default_rng(0).normal(100, 20, arguments.shape).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "noise.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        predict = [sys.executable, "-m", "lvit_cli.main", "predict", path, "--model", arguments.model]
        start = time.perf_counter()
        subprocess.run([*predict, "--text", "the hippocampus", "--out", folder], check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_seconds, mebibytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"{seconds:.0f} seconds, {processor_seconds:.0f} seconds of processor time, peak memory {mebibytes:.0f} MiB")


if __name__ == "__main__":
    main()

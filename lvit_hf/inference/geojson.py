"""Objects of a mask as GeoJSON that QuPath opens: a feature of each, written as they come."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from PIL import ImageColor
from skimage.measure import find_contours, regionprops

from ..io.writing import replacing
from .drawing import OVERLAY_COLOR
from .instances import NUCLEI


# In pixels. An outline goes through the middles of its pixels' edges, up to sqrt(1/8) from their corners; simplified
# by this much, it stays within half a pixel of them.
TOLERANCE = 0.14


# How each file begins, so that it is known again.
START = '{"type": "FeatureCollection", "generator": "lvit_hf", "features": ['


def check_geojson(path: Path):
    """Refuses to replace what is no GeoJSON of this module.

    Raises:
        FileExistsError: If there is such a thing.
    """
    if path.exists() and not (path.is_file() and path.read_bytes()[: len(START)] == START.encode()):
        raise FileExistsError(f"{path} exists and is no GeoJSON of lvit; give the file another name.")


class GeoJsonFile:
    """A GeoJSON feature collection that objects are added to; it appears under its name when it is closed.

    Args:
        path: Where to write it.
        finding: What the objects are. Nuclei are detections in QuPath, everything else annotations.
        unit: Of sizes and diameters, such as `"µm"`.
    """

    def __init__(self, path: Path, finding: str, unit: str):
        self._path, self._unit = path, unit
        self._properties = {
            "objectType": "detection" if finding == NUCLEI else "annotation",
            "classification": {"name": finding, "color": ImageColor.getrgb(OVERLAY_COLOR)},
        }
        self._count = 0

    def __enter__(self) -> Self:
        self._files = ExitStack()
        part = self._files.enter_context(replacing(self._path))
        self._file = self._files.enter_context(part.open("w", encoding="utf-8"))
        self._file.write(START)
        return self

    def __exit__(self, *error: Any):
        if error[0] is None:
            self._file.write("\n]}\n")
        self._files.__exit__(*error)

    def add(self, instances: np.ndarray, measured: list[dict[str, Any]], origin: tuple[int, int] = (0, 0)):
        """Adds objects.

        Args:
            instances: The number of each pixel's object, 0 outside, of shape `(height, width)`.
            measured: What `measure_instances` says of those that are to be added. Their numbers in the file go on
                from those before.
            origin: `(left, upper)` of `instances` in the image.
        """
        regions = {region.label: region for region in regionprops(instances)}
        for entry in measured:
            self._count += 1
            region = regions[entry["id"]]
            upper, left, *_ = region.bbox
            shape = outline(region.image, (origin[0] + left, origin[1] + upper))
            feature = {
                "type": "Feature",
                "geometry": shapely.geometry.mapping(shape),
                "properties": {**self._properties, "measurements": self._name(entry, origin)},
            }
            self._file.write(",\n" if self._count > 1 else "\n")
            json.dump(feature, self._file, ensure_ascii=False)

    def _name(self, entry: dict[str, Any], origin: tuple[int, int]) -> dict[str, float]:
        """Measurements by the names that QuPath gives its own."""
        row, column = entry["centroid"]
        return {
            "Id": self._count,
            f"Area {self._unit}^2": _round(entry["size"]),
            f"Equivalent diameter {self._unit}": _round(entry["diameter"]),
            # Of edges of pixels, as the outlines are.
            "Centroid X px": round(origin[0] + column + 0.5, 2),
            "Centroid Y px": round(origin[1] + row + 0.5, 2),
            "Mean probability": _round(entry["mean_probability"]),
        }


def _round(value: float) -> float:
    """To six digits that count: in mm² a nucleus is a small number."""
    return float(f"{value:.6g}")


def outline(mask: np.ndarray, origin: tuple[int, int] = (0, 0)) -> shapely.Geometry:
    """The outline of a mask, with its holes, simplified to within half a pixel.

    Args:
        mask: Booleans of shape `(height, width)`, not all of them false.
        origin: `(left, upper)` of the mask in the image.

    Returns:
        A valid polygon, or several where the mask is of several parts, in pixels of the image: the first pixel goes
        from 0 to 1.
    """
    rings = [shapely.linestrings(ring[:, ::-1]) for ring in find_contours(np.pad(mask, 1), fully_connected="high")]
    shape = shapely.simplify(shapely.build_area(shapely.multilinestrings(rings)), TOLERANCE)
    # The middle of the first pixel is (1, 1) here and (0.5, 0.5) there.
    return shapely.transform(shapely.orient_polygons(shape), lambda points: points + np.subtract(origin, 0.5))

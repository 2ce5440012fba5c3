"""GeoJSON read back: valid polygons that lie on their pixels, with the numbers that were measured."""

import json

import numpy as np
import pytest
import shapely
from scipy import ndimage

from lvit_hf.inference.geojson import GeoJsonFile, check_geojson, outline
from lvit_hf.inference.instances import label_instances, measure_instances


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    """Blobs with holes, specks and parts that touch by corners, some of them at the edge of the image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(150, 200)), 1.5)
    return noise > 0


def pixels_of(part: np.ndarray) -> shapely.Geometry:
    rows, columns = np.nonzero(part)
    return shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))


def test_outlines_stay_within_half_a_pixel(mask):
    instances = label_instances(mask, "lesion")
    for number in range(1, instances.max() + 1):
        part = instances == number
        shape, exact = outline(part), pixels_of(part)
        assert shape.is_valid
        assert shapely.hausdorff_distance(shape.boundary, exact.boundary, densify=0.05) <= 0.51
        assert abs(shape.area - part.sum()) <= 0.05 * part.sum() + 0.5


def test_holes_and_places():
    ring = np.ones((9, 9), bool)
    ring[3:6, 2:7] = False
    shape = outline(ring, (100, 50))
    assert len(shape.interiors) == 1 and shape.bounds == (100, 50, 109, 59)
    assert shape.area == pytest.approx(81 - 15, abs=1)
    assert shape.exterior.is_ccw and not shape.interiors[0].is_ccw
    assert outline(np.ones((1, 1), bool)).centroid.equals(shapely.Point(0.5, 0.5))


@pytest.mark.parametrize(("finding", "kind"), [("nuclei", "detection"), ("infection", "annotation")])
def test_a_file_is_read_back(finding, kind, mask, tmp_path):
    instances = label_instances(mask, finding)
    measured = measure_instances(instances, np.full(mask.shape, 0.7), (0.5, 0.5))
    with GeoJsonFile(tmp_path / "a.geojson", finding, "µm") as file:
        file.add(instances, measured[:5])
        file.add(instances, [])
        file.add(instances, measured[5:], (1000, 2000))
        assert not (tmp_path / "a.geojson").exists()
    collection = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == len(measured)
    for number, (feature, entry) in enumerate(zip(collection["features"], measured), 1):
        properties = feature["properties"]
        assert feature["type"] == "Feature" and properties["objectType"] == kind
        assert properties["classification"]["name"] == finding
        measurements = properties["measurements"]
        assert measurements["Id"] == number and measurements["Area µm^2"] == pytest.approx(entry["size"], abs=1e-3)
        assert measurements["Mean probability"] == pytest.approx(0.7)
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid and abs(shape.area - entry["pixels"]) <= 0.05 * entry["pixels"] + 0.5
        centroid = (measurements["Centroid X px"], measurements["Centroid Y px"])
        assert centroid == pytest.approx((shape.centroid.x, shape.centroid.y), abs=0.6)
        assert shape.bounds[0] >= (1000 if number > 5 else 0) and shape.bounds[1] >= (2000 if number > 5 else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.geojson"]


def test_only_a_file_of_its_own_is_replaced(tmp_path):
    own, others, folder = tmp_path / "own.geojson", tmp_path / "others.geojson", tmp_path / "folder.geojson"
    with GeoJsonFile(own, "nuclei", "px"):
        pass
    others.write_text('{"type": "FeatureCollection", "features": []}')
    folder.mkdir()
    for path in (own, tmp_path / "new.geojson"):
        check_geojson(path)
    for path in (others, folder):
        with pytest.raises(FileExistsError, match="give the file another name"):
            check_geojson(path)


def test_no_object_is_a_collection_too(tmp_path):
    with GeoJsonFile(tmp_path / "a.geojson", "nuclei", "px"):
        pass
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []


def test_a_failed_file_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), GeoJsonFile(tmp_path / "a.geojson", "nuclei", "px") as file:
        file.add(np.ones((3, 3), int), [{"id": 1}])
    assert not list(tmp_path.iterdir())

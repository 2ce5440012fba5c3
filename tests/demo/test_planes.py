"""A network of three dimensions on the page: three planes that move together."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from app_page import Network, facts, open_page, serve, upload
from chromium import PHONE
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from playwright.sync_api import Page, expect
from tiny_volumes import tiny_volume_model, tiny_volume_processor

from lvit_hf.demo.planes import write_planes
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.volumes import segment_scan
from lvit_hf.io.readers import read_scan


PLANES = ("axial", "coronal", "sagittal")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny_volume_model(text_fusion="cross_attention"), tiny_volume_processor())


@pytest.fixture(scope="module")
def network(segmenter) -> Network:
    return Network(segmenter)


@pytest.fixture(scope="module")
def url(segmenter, network):
    with serve(segmenter, name="volumes") as url:
        yield url


def make_volume(path: Path, seed: int) -> Path:
    values = np.random.default_rng(seed).normal(100, 20, (20, 24, 18)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.5, 2.0, 1.0])), path)
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Path:
    return make_volume(tmp_path_factory.mktemp("planes") / "head.nii.gz", 0)


@pytest.fixture(scope="module")
def probabilities(segmenter, volume) -> np.ndarray:
    """As the page has them: from the head to the feet, from the front to the back, from the right to the left."""
    image = nibabel.load(volume)
    scores = nibabel.Nifti1Image(segmenter.segment_volume(image).probabilities, image.affine)
    to_left_back_feet = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPI"))
    return scores.as_reoriented(to_left_back_feet).get_fdata().T


def places(page: Page) -> list[int]:
    """The numbers of the three planes, from 0."""
    return [int(value) - 1 for value in page.locator(".planes input").evaluate_all("all => all.map(one => one.value)")]


def expect_planes(page: Page, mask: np.ndarray):
    """Every plane shows so many pixels of the mask as it has where the planes are."""
    for axis, (name, place) in enumerate(zip(PLANES, places(page))):
        label = re.compile(f"{name}, slice {place + 1}: {np.take(mask, place, axis).sum()} pixels", re.IGNORECASE)
        expect(page.locator(f"[data-plane={name}] canvas")).to_have_attribute("aria-label", label)


@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desktop", "phone"])
def test_three_planes_move_together_and_follow_the_threshold(browser, url, network, volume, probabilities, screen):
    with open_page(browser, url, has_example=False, **screen) as page:
        expect(page.locator("textarea.text")).to_have_attribute("placeholder", re.compile("the anterior hippocampus"))
        upload(page, volume)
        expect(page.get_by_role("button", name="All slices")).to_have_count(0)  # it takes all of them anyway
        page.locator(".lvit[data-planes][data-busy=no]").wait_for()
        mask = probabilities > 0.5
        assert places(page) == [round(float(middle)) for middle in np.argwhere(mask).mean(0)]
        expect_planes(page, mask)
        assert facts(page)["Volume"] == f"{mask.sum() * 3:,} mm³"
        axial = page.locator("[data-plane=axial] canvas")
        axial.scroll_into_view_if_needed()
        runs, box, before = network.runs, axial.bounding_box(), places(page)
        axial.click(position={"x": box["width"] / 2 + 20, "y": box["height"] / 2 - 20})
        expect(page.locator(f"[data-plane={PLANES[1]}] input")).not_to_have_value(str(before[1] + 1))
        assert places(page)[1] < 12 and places(page)[2] > 10  # before the middle, and left of it
        expect_planes(page, mask)
        page.locator("[data-plane=axial] input").fill("3")
        expect_planes(page, mask)
        page.locator(".threshold").fill("58")  # 100 * 0.58 is less than 58
        expect_planes(page, probabilities > 0.58)
        expect(page.locator(".facts")).to_contain_text(f"{(probabilities > 0.58).sum() * 3:,} mm³")
        assert network.runs == runs
        page.locator(".downloads summary").click()
        with page.expect_download() as download:
            page.get_by_text("Mask (DICOM or NIfTI)").click()
        path = download.value.path()
        assert nibabel.load(path.rename(path.with_suffix(".nii.gz"))).get_fdata().sum() == (probabilities > 0.58).sum()


def test_the_work_on_a_volume_can_be_stopped(browser, url, network, tmp_path):
    with open_page(browser, url, has_example=False) as page:
        network.delay = 0.5
        upload(page, make_volume(tmp_path / "other.nii.gz", 1))
        expect(page.locator(".busy span")).to_have_text(re.compile(r"^\d+ / \d+$"))
        page.locator(".stop").click()
        expect(page.locator(".error")).to_have_text("Stopped. Nothing of it was kept.")
        page.wait_for_timeout(600)  # until the window that was begun is finished
        runs = network.runs
        page.wait_for_timeout(1200)
        assert network.runs == runs
        network.delay = 0.0
        page.locator(".segment").click()
        page.locator(".lvit[data-planes][data-busy=no]").wait_for()


def test_a_large_volume_is_thinned_out(tmp_path, segmenter, volume):
    scan = read_scan(volume, keep_values=True)
    planes = write_planes(tmp_path / "planes.bin", scan, segment_scan(segmenter, scan), most_voxels=1000)
    assert np.prod(planes["shape"]) <= 1000
    np.testing.assert_allclose(np.multiply(planes["shape"], planes["spacing"]), [36, 36, 20])

"""Programs beside a viewer: they send a token, see how far the work is, and stop it."""

import runpy
import time

import httpx
import nibabel
import numpy as np
import pytest
from app_page import Network, serve
from gradio_client import Client, handle_file

from lvit_hf.demo import build_demo, launch
from lvit_hf.demo.access import OPEN_PATHS
from lvit_hf.io.checkpoints import EXAMPLES_FOLDER
from lvit_hf.io.readers import read_scan


TOKEN = "open-sesame"
SLICES = 160


@pytest.fixture(scope="module")
def url(segmenter):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVIT_TOKEN", TOKEN)
        with serve(segmenter) as url:
            yield url


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume.nii.gz"
    voxels = np.random.default_rng(time.time_ns()).random((24, 20, SLICES), np.float32)  # not one of an earlier test
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 3, 4, 1])), path)
    return path


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setenv("LVIT_TOKEN", TOKEN)
    return runpy.run_path(str(EXAMPLES_FOLDER / "slicer_client.py"))["segment_volume"]


def ask(url: str, path: str, token: str | None, scheme: str = "Bearer") -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"{scheme} {token}".encode()}
    return httpx.get(f"{url}{path}", headers=headers)


PATHS = ["", "config", "gradio_api/info", "gradio_api/mcp/schema", "gradio_api/file=a.png", "gradio_api/file=/health"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_there_is_nothing(url, path):
    wrong = [(token, "Bearer") for token in (TOKEN[:-1], f"{TOKEN}x", "é")]
    for token, scheme in [(None, ""), (TOKEN, "Basic"), *wrong]:
        answer = ask(url, path, token, scheme)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["detail"]
    assert ask(url, path, TOKEN).status_code != 401 and ask(url, path, TOKEN, "bearer").status_code != 401


def test_without_the_token_nothing_is_taken(url):
    for path in ("gradio_api/upload", "gradio_api/call/v2/segment", "gradio_api/queue/join", "gradio_api/cancel"):
        assert httpx.post(f"{url}{path}", json={}).status_code == httpx.head(f"{url}{path}").status_code == 401
    assert [httpx.get(f"{url}{path[1:]}").status_code for path in OPEN_PATHS] == [200, 200]


def test_gradios_client_sends_the_token(url):
    client = Client(url, verbose=False, headers={"Authorization": f"Bearer {TOKEN}"})
    report = client.predict(handle_file(EXAMPLES_FOLDER / "chest-xray.jpg"), api_name="/segment")[2]
    assert report["image"] == "chest-xray.jpg"


def test_settings_that_do_not_do_are_refused(monkeypatch, segmenter):
    demo = build_demo(segmenter)
    for login in ("user", "user:", ":password"):
        monkeypatch.setenv("LVIT_AUTH", login)
        with pytest.raises(ValueError, match="USER:PASSWORD"):
            launch(demo)
    monkeypatch.delenv("LVIT_AUTH")
    monkeypatch.setenv("LVIT_TOKEN", "two words")
    with pytest.raises(ValueError, match="without spaces"):
        launch(demo)
    monkeypatch.setenv("LVIT_TOKEN", TOKEN)
    monkeypatch.setenv("LVIT_AUTH", "user:password")
    with pytest.raises(ValueError, match="one server for each"):
        launch(demo)


def test_the_example_for_slicer_gets_the_mask_and_hears_of_the_progress(example, url, segmenter, volume, tmp_path):
    steps = []
    text = "one infected area"
    mask, report = example(url, str(volume), str(tmp_path), text, 0.4, lambda *step: steps.append(step) or True)
    scan = read_scan(volume)
    alone = [segmenter.segment([scan.image(index)], [text])[0] for index in range(SLICES)]
    # The service has other batches, for which PyTorch rounds otherwise: a voxel at the threshold may be on any side.
    certain = np.stack([np.abs(result.probabilities - 0.4) > 1e-5 for result in alone])
    assert certain.mean() > 0.999
    np.testing.assert_array_equal(
        (read_scan(mask).slices > 0)[certain], np.stack([result.mask(0.4) for result in alone])[certain]
    )
    np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(volume).affine)
    assert report["slices"] == SLICES
    assert [total for _, total in steps] == [SLICES] * len(steps) and len(steps) > 3
    assert steps[-1][0] == SLICES and steps == sorted(steps)


def test_the_example_for_slicer_stops_the_work(example, url, segmenter, volume, tmp_path):
    network = Network(segmenter)
    network.delay = 0.2
    assert example(url, str(volume), str(tmp_path), progress=lambda finished, total: finished == 0) is None
    time.sleep(1)
    network.delay, runs = 0.0, network.runs
    time.sleep(1)
    assert network.runs == runs < SLICES / 8


def test_gradios_client_cancels_the_work(url, segmenter, volume):
    network = Network(segmenter)
    network.delay = 0.2
    client = Client(url, verbose=False, headers={"Authorization": f"Bearer {TOKEN}"})
    job = client.submit(handle_file(volume), api_name="/segment_volume")
    while not job.outputs():
        time.sleep(0.05)
    assert job.outputs()[0][1]["total"] == SLICES
    job.cancel()
    time.sleep(1)
    network.delay, runs = 0.0, network.runs
    time.sleep(1)
    assert network.runs == runs < SLICES / 8


def test_the_example_for_slicer_tells_why_it_was_refused(example, url, monkeypatch, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no volume")
    with pytest.raises(RuntimeError, match=r"broken\.nii\.gz"):
        example(url, str(tmp_path / "broken.nii.gz"), str(tmp_path))
    monkeypatch.setenv("LVIT_TOKEN", "wrong")
    with pytest.raises(RuntimeError, match="401.*Authorization: Bearer"):
        example(url, str(tmp_path / "broken.nii.gz"), str(tmp_path))

"""Segments the volume that is open in 3D Slicer with a server of lvit_hf. In Slicer's Python console:

    exec(open("/PATH/TO/slicer_client.py").read())
    segment_open_volume("http://127.0.0.1:7860", "two infected areas, lower left lung")

It needs nothing but Python's standard library. The token, if the server has one, is `LVIT_TOKEN` of the environment.
"""

import json
import os
import tempfile
import urllib.error
import urllib.request
import uuid


def segment_volume(url, path, out, text="", threshold=0.5, progress=lambda finished, total: True):
    """Sends a volume to the server and writes its mask.

    Args:
        url: The server.
        path: A NIfTI file, a DICOM file with several frames, or a zip of a series.
        out: Folder for the mask.
        text: What to find and where; may be empty.
        threshold: Probability above which a voxel belongs to the mask.
        progress: Called with the numbers of finished and of all slices. If it returns False, the server stops.

    Returns:
        The path of the mask and the measurements; None if it was stopped.

    Raises:
        RuntimeError: If the server refuses the request; the message is its reason.
    """
    api = url.rstrip("/") + "/gradio_api"
    with open(path, "rb") as file:
        boundary, name = uuid.uuid4().hex, os.path.basename(path)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + file.read() + f"\r\n--{boundary}--\r\n".encode()
    with _open(f"{api}/upload", body, f"multipart/form-data; boundary={boundary}") as answer:
        volume = {"path": json.load(answer)[0], "meta": {"_type": "gradio.FileData"}}
    question = json.dumps({"volume": volume, "text": text, "threshold": threshold}).encode()
    with _open(f"{api}/call/v2/segment_volume", question, "application/json") as answer:
        event = json.load(answer)["event_id"]
    with _open(f"{api}/call/v2/segment_volume/{event}") as stream:
        for kind, data in _read_events(stream):
            if kind == "error":
                raise RuntimeError(data["error"] if isinstance(data, dict) else data)
            if kind == "generating" and data[0] is None and not progress(data[1]["finished"], data[1]["total"]):
                return None  # which closes the stream, and so stops the work
            if kind == "complete":
                break
    mask, measurements = data
    written = os.path.join(out, os.path.basename(mask["path"]))
    with _open(f"{api}/file={mask['path']}") as answer, open(written, "wb") as file:
        file.write(answer.read())
    return written, measurements


def _open(url, body=None, kind=None):
    headers = {"Content-Type": kind} if kind else {}
    if token := os.environ.get("LVIT_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers))
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"The server answered {error.code}: {error.read().decode(errors='replace')}")


def _read_events(stream):
    """What the server sends as it works: the kind of each event and its data."""
    kind = ""
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def segment_open_volume(url, text="", threshold=0.5):
    """Segments the first volume of Slicer's scene and shows the mask as a segmentation; returns the measurements."""
    import slicer

    volume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    dialog = slicer.util.createProgressDialog(labelText="Segmenting")

    def show(finished, total):
        dialog.maximum, dialog.value = total, finished
        slicer.app.processEvents()
        return not dialog.wasCanceled

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "volume.nii.gz")
        slicer.util.saveNode(volume, path)
        try:
            answer = segment_volume(url, path, folder, text, threshold, show)
        finally:
            dialog.close()
        if answer is None:
            return None
        slicer.util.loadSegmentation(answer[0])
        return answer[1]

"""How long a visitor of the page waits, from a click on Segment to the drawn mask.

    python benchmarks/page.py DATA --backend openvino

It uploads validation images of a data set, resized to 352 x 352 pixels, to a page in the installed Chromium, and asks
for each with its caption.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from lvit_hf.data.load import load_data, take_evenly
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from app_page import caption_field, open_page, serve, upload, wait_for_result  # noqa: E402


SIDE = 352  # pixels
CLICK = """() => new Promise((done) => {
  const canvas = document.querySelector(".stage canvas"), before = canvas.dataset.result, start = performance.now();
  document.querySelector(".segment").click();
  const look = () => {
    const isIdle = document.querySelector(".lvit").dataset.busy === "no";
    if (isIdle && ![before, ""].includes(canvas.dataset.result)) done(performance.now() - start);
    else requestAnimationFrame(look);
  };
  look();
})"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default=str(DEFAULT_CHECKPOINT))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    rows = take_evenly(load_data(arguments.data, "valid"), arguments.count)
    images = [row["image"].convert("RGB").resize((SIDE, SIDE)) for row in rows]
    segmenter = Segmenter.from_pretrained(arguments.model, arguments.backend)
    clicks, alone = [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright, serve(segmenter) as url:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with open_page(browser, url) as page:
            for number, (image, text) in enumerate(zip(images, rows["text"])):
                path = Path(folder) / f"{number}.png"
                image.save(path)
                upload(page, path)
                wait_for_result(page, path.name)
                caption_field(page).fill(text)
                page.wait_for_timeout(300)  # until the caption was read
                clicks.append(page.evaluate(CLICK))
    for image, text in zip(images, rows["text"]):
        start = time.perf_counter()
        segmenter.segment([image], [text])
        alone.append(1000 * (time.perf_counter() - start))
    print(f"from the click to the drawn mask: {statistics.median(clicks):.0f} ms, median of {len(clicks)}")
    print(f"Segmenter.segment alone: {statistics.median(alone):.0f} ms")


if __name__ == "__main__":
    main()

"""Takes the pictures of the demo that the documentation shows, with the shipped checkpoint."""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from lvit_hf.demo import launch, load_demo


DOCS = Path(__file__).parents[1] / "docs"
TIMEOUT = 120_000  # milliseconds
PICTURES = {
    "demo.jpg": {"viewport": {"width": 1280, "height": 1000}},
    "demo-dark.jpg": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
    "demo-phone.jpg": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def take_picture(page: Page, path: Path):
    page.get_by_test_id("dataset-cell-0-0").click()
    expect(page.get_by_label("Use of the caption")).to_have_value("read by the network", timeout=TIMEOUT)
    mask = page.get_by_alt_text("segmentation mask").first
    mask.evaluate("image => image.decode()")
    page.wait_for_timeout(1000)  # milliseconds, until the page has scrolled to the result by itself
    top = mask.bounding_box()["y"] if page.viewport_size["width"] < 600 else 0
    page.evaluate("top => window.scrollTo(0, top && window.scrollY + top - 80)", top)
    png = path.with_suffix(".png")
    page.screenshot(path=png)
    Image.open(png).convert("RGB").save(path, quality=85, optimize=True)
    png.unlink()


def main():
    demo = load_demo()
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        for name, settings in PICTURES.items():
            page = browser.new_page(**settings)
            page.goto(url)
            take_picture(page, DOCS / name)
            page.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()

"""Takes the pictures of the demo that the documentation shows, with the shipped checkpoint.

`--all` takes every size, language and colour scheme too, into a folder to look through.
"""

import argparse
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from lvit_hf.demo import launch, load_demo


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tests"))

from app_page import segment, wait_for_result  # noqa: E402


SIZES = {"phone": (390, 844), "tablet": (768, 1024), "desktop": (1280, 900), "wide": (1920, 1080)}
PICTURES: dict[str, dict[str, Any]] = {
    "demo.jpg": {"viewport": {"width": 1280, "height": 900}},
    "demo-dark.jpg": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "demo-phone.jpg": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def save(page: Page, path: Path):
    png = path.with_suffix(".png")
    page.wait_for_timeout(500)  # milliseconds, until all is drawn
    page.screenshot(path=png)
    if path != png:
        Image.open(png).convert("RGB").save(path, quality=85, optimize=True)
        png.unlink()


def show_states(page: Page, folder: Path, name: str):
    """One picture of each thing that the page can show."""
    save(page, folder / f"{name}-first.png")
    for view in ("split", "heat", "effect"):
        page.locator(f"[name=lvit-view][value={view}]").evaluate("input => input.click()")
        save(page, folder / f"{name}-{view}.png")
    page.locator(".words summary").click()
    page.locator("#lvit-other").fill("unilateral pulmonary infection, one infected area, upper left lung.")
    page.locator(".compare").click()
    page.locator("[name=lvit-view][value=words]:checked").wait_for(state="attached")
    save(page, folder / f"{name}-words.png")
    page.locator(".words summary").click()
    segment(page, "a photo of a dog")
    save(page, folder / f"{name}-unknown.png")
    page.locator(".examples button").nth(2).click()
    wait_for_result(page, "slide-he.jpg")
    save(page, folder / f"{name}-slide.png")
    page.locator(".drop input").set_input_files([str(path) for path in sorted((ROOT / "examples").glob("*.*"))])
    page.locator(".many tbody tr").first.wait_for()
    save(page, folder / f"{name}-many.png")


def open_page(browser: Browser, url: str, **settings) -> Page:
    page = browser.new_page(**settings)
    page.set_default_timeout(120_000)  # milliseconds
    page.goto(url)
    wait_for_result(page)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    folder = parser.parse_args().all
    demo = load_demo()
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        if folder is None:
            for name, settings in PICTURES.items():
                page = open_page(browser, url, **settings)
                save(page, DOCS / name)
                page.close()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for (size, (width, height)), color, locale in itertools.product(
                SIZES.items(), ("light", "dark"), ("en-US", "zh-CN")
            ):
                viewport = {"width": width, "height": height}
                page = open_page(browser, url, viewport=viewport, color_scheme=color, locale=locale)
                show_states(page, folder, f"{size}-{color}-{locale[:2]}")
                page.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()

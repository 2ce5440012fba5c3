"""How long a visitor of a static Space waits, and how much is loaded.

    lvit push-space --static --out SPACE
    python benchmarks/in_browser.py SPACE

It opens the page in the installed Chromium, as a web server with the headers of the Space's README has it and as one
without them, where there is one thread, and segments the first example with its caption and without.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chromium import launch_browser  # noqa: E402
from static_page import Site, open_static, serve_folder, wait_for_mask, wait_until_ready  # noqa: E402


CLICK = """() => new Promise((done) => {
  const [start, save] = [performance.now(), document.querySelector("#save")];
  document.querySelector("#segment").click();
  const look = () => (save.disabled ? requestAnimationFrame(look) : done((performance.now() - start) / 1000));
  look();
})"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    with serve_folder(arguments.space) as site, launch_browser() as browser:
        isolated: dict[str, str] = site.headers
        for headers in (isolated, {}):
            site.headers = headers
            start = time.perf_counter()
            with open_static(browser, site.url) as page:
                print(f"{page.evaluate('crossOriginIsolated ? navigator.hardwareConcurrency : 1')} threads")
                print(f"first visit: {time.perf_counter() - start:.1f} s, {count_bytes(site, arguments.space):.1f} MB")
                measure(page, site, arguments)


def measure(page: Page, site: Site, arguments: argparse.Namespace):
    start = time.perf_counter()
    page.reload()
    wait_until_ready(page)
    print(f"next visit: {time.perf_counter() - start:.1f} s")
    site.asked.clear()
    start = time.perf_counter()
    page.locator("#examples button").first.click()
    wait_for_mask(page)
    print(f"first caption: {time.perf_counter() - start:.1f} s, {count_bytes(site, arguments.space):.1f} MB")
    for name in ("with its caption", "without a caption"):
        before = processor_seconds()
        seconds = [page.evaluate(CLICK) for _ in range(arguments.count)]
        busy = (processor_seconds() - before) / arguments.count
        print(f"{name}: {statistics.median(seconds):.2f} s, median of {len(seconds)}, fastest {min(seconds):.2f} s")
        print(f"  of the processor: {busy:.2f} s")
        page.locator("#caption").fill("")


def processor_seconds() -> float:
    """What all processes of the browser have taken so far, whatever else the machine does."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def count_bytes(site: Site, folder: Path) -> float:
    """Megabytes that the site gave, and forgets."""
    files = [folder / (path.partition("?")[0].lstrip("/") or "index.html") for path in site.asked]
    site.asked.clear()
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()

"""Screenshots of the page for docs/page.md, made from the example's photos by Chromium, at desktop and at phone width.

python benchmarks/render_page_pictures.py              # docs/pictures/page_*.jpg
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from chromium_hdr import CHROMIUM  # noqa: E402
from web_page import EXAMPLES, SOFTWARE_WEBGL, Served  # noqa: E402


def main() -> None:
    """Merge the example and take the pictures."""
    from playwright.sync_api import Page, sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    out = parser.parse_args().out

    def take(page: Page, name: str, *, whole: bool = False) -> None:
        time.sleep(1.5)  # tiles, and their drawing
        Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB").save(out / name, quality=85)
        print(out / name)

    with tempfile.TemporaryDirectory() as place, sync_playwright() as player:
        served = Served(place=Path(place))
        try:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
            page = browser.new_page(viewport={"width": 1360, "height": 1000})
            page.goto(served.url)
            page.set_input_files("#files", [str(p) for p in EXAMPLES])
            page.click(".bracket button.main", timeout=60_000)
            page.wait_for_selector("#viewer:not([hidden])", timeout=120_000)
            page.evaluate(
                "document.querySelector('#exposure').value = -2; document.querySelector('#exposure').dispatchEvent(new Event('input'))"
            )
            page.evaluate("scrollTo(0, 0)")
            take(page, "page_desktop.jpg")
            page.select_option("#overlay", "provenance")
            page.select_option("#beside", "1")
            take(page, "page_compare.jpg")
            page.set_viewport_size({"width": 390, "height": 844})
            page.select_option("#beside", "")
            take(page, "page_phone.jpg", whole=True)
            browser.close()
        finally:
            served.close()


if __name__ == "__main__":
    main()

"""Draws docs/images/serve.png: the page of `d2net serve` with the sample pair, in Chromium.

usage: python tools/page_picture.py
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).parent.parent
SIZE = ViewportSize(width=1000, height=760)
COLOURS = 128  # of the picture, so that it stays small


def main() -> None:
    """Serve the page, use it as a person would, and keep what is seen."""
    command = [sys.executable, "-m", "d2net", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(word for word in server.stdout.readline().split() if "://" in word)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                )
                shot = picture(browser.new_page(viewport=SIZE), address)
        finally:
            server.terminate()
    small = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS)
    small.save(ROOT / "docs" / "images" / "serve.png", optimize=True)


def picture(page: Page, address: str) -> bytes:
    """The page with a match that is looked at."""
    page.goto(address)
    for which, name in (("first", "graf1.jpg"), ("second", "graf3.jpg")):
        page.set_input_files(f"#file-{which}-photo", ROOT / "tests" / "data" / name)
    page.wait_for_selector("#match .result strong", timeout=300_000)
    page.locator("#number").fill("70")
    page.wait_for_timeout(3000)
    page.locator("#match .stage").focus()
    for _ in range(77):
        page.keyboard.press("ArrowRight")
    page.evaluate("document.activeElement.blur()")  # no frame around the photos
    page.wait_for_timeout(1000)
    return page.screenshot(full_page=True)


if __name__ == "__main__":
    main()

"""Makes docs/demo.png: the page of `keras-vit demo` in Chromium, with a test image.

    python docs/demo.py RUN

Needs playwright and Chromium.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

COLORS = 256  # of the PNG, which is smaller then
COMMAND = [sys.executable, "-m", "keras_vit.cli", "demo", sys.argv[1], "--port", "0"]


def main():
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as library:
        try:
            address = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            browser = library.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1100, "height": 700})
            page.goto(address)
            page.locator(".gallery-item").first.click()
            page.locator(".seen img").wait_for()
            page.wait_for_timeout(1000)  # bars grow
            content = page.screenshot(full_page=True)
            browser.close()
        finally:
            server.terminate()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(COLORS).save(Path(__file__).with_name("demo.png"), optimize=True)


if __name__ == "__main__":
    main()

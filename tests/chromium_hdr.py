"""Headless Chromium as an outside decoder: gain-map JPEG, PQ AVIF and PQ PNG to linear light, through a float canvas.

`with Chromium() as browser: browser.decode(path, headroom)` gives (H, W, 3) float32, linear light in sRGB primaries, 1.0 = SDR
diffuse white. headroom is the display's, in stops: 0 gives the SDR base, the file's own headroom or more the whole rendition.
A screenshot would not do: headless, it always shows the base.
"""

from __future__ import annotations

import base64
import functools
import http.server
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"

FLAGS = [
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-blink-features=CanvasGlobalHDRHeadroom,CanvasHDR,CanvasFloatingPoint",
    "--enable-experimental-web-platform-features",
]

# Draw the photo on a canvas that holds linear half floats and pretends to be a display of the given headroom, then read it back.
DECODE = """async ({url, headroom}) => {
  const photo = new Image();
  photo.src = url;
  await photo.decode();
  const canvas = document.createElement('canvas');
  canvas.width = photo.naturalWidth;
  canvas.height = photo.naturalHeight;
  const context = canvas.getContext('2d', {colorSpace: 'srgb-linear', colorType: 'float16', toneMapping: {mode: 'extended'}});
  if (!('globalHDRHeadroom' in context)) throw new Error('this Chromium has no canvas HDR headroom');
  context.globalHDRHeadroom = headroom;
  context.drawImage(photo, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height, {colorSpace: 'srgb-linear', pixelFormat: 'rgba-float16'});
  const bytes = new Uint8Array(new Float32Array(pixels.data).buffer);
  let text = '';
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode.apply(null, bytes.subarray(i, i + 32768));
  return {width: canvas.width, height: canvas.height, data: btoa(text)};
}"""


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves one folder quietly, and an empty page at the root (a file:// canvas could not be read back)."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html>")


def missing() -> str | None:
    """Why Chromium cannot be used here, None where it can."""
    if not Path(CHROMIUM).exists():
        return "Chromium is not installed (Debian: apt install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "the Python package playwright is not installed"
    return None


class Chromium:
    """One browser for many files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Chromium:
        from playwright.sync_api import sync_playwright

        handler = functools.partial(_Files, directory=str(self.folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        self.page = self.browser.new_page()
        self.page.goto(f"http://127.0.0.1:{self.server.server_port}/")
        return self

    def decode(self, path: Path, headroom: float = 6.0) -> np.ndarray:
        """(H, W, 3) float32 linear light of a file in the folder, on a display of that headroom in stops."""
        url = "/" + path.relative_to(self.folder).as_posix()
        out = self.page.evaluate(DECODE, {"url": url, "headroom": headroom})
        pixels = np.frombuffer(base64.b64decode(out["data"]), np.float32)
        return pixels.reshape(out["height"], out["width"], 4)[..., :3].copy()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.browser.close()
        self.playwright.stop()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

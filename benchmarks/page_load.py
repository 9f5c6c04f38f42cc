"""The page under load, and how fast it is to look at.

    python benchmarks/page_load.py                    # needs Debian's Chromium and the Python package playwright for the second half
    options: --clients 20 --rounds 5 --megapixels 12

First half: a server on loopback; CLIENTS at a time upload a bracket, read tiles and pixels, and merge, ROUNDS times over; printed are
requests a second, the slowest, failures, and the server's memory after each round (it should not rise). Second half: first paint, and
frames a second while a picture of so many megapixels is panned and its exposure changed, in Chromium with WebGL in software (no GPU).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium_hdr import CHROMIUM, missing
from web_page import EXAMPLES, SOFTWARE_WEBGL, Served

EXPLORE = """async (frames) => {
  const v = gmodiff.viewer, times = [];
  v.zoomTo(1);
  const next = () => new Promise((done) => requestAnimationFrame(done));
  for (let round = 0; round < 2; round++) for (let n = 0; n < frames; n++) {
    v.moveBy(-12 * Math.cos(n / 20), -9 * Math.sin(n / 13));
    v.set({ exposure: 2 * Math.sin(n / 15) });
    const before = performance.now();
    await next();
    v.gl.readPixels(5, 5, 1, 1, v.gl.RGBA, v.gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until everything is drawn
    if (round) times.push(performance.now() - before);
  }
  return [times, v.coarse];
}"""


def resized(place: Path, width: int, height: int) -> list[Path]:
    """The example's photos at another size, with their metadata."""
    out = []
    for path in EXAMPLES:
        image = Image.open(path)
        out.append(place / path.name)
        image.resize((width, height), Image.Resampling.LANCZOS).save(out[-1], exif=image.info["exif"], quality=92)
    return out


def rss_mb(pid: int) -> float:
    """Memory of a process that is in use."""
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def client(served: Served, photos: list[Path], picture: str, times: list[float], failures: list[object], number: int) -> str:
    """What one client does in a round; returns its job."""

    def ask(method: str, path: str, body: Any = None) -> Any:
        began = time.monotonic()
        status, found, _ = served.ask(method, path, body)
        times.append(time.monotonic() - began)
        if status != 200:
            failures.append((path, status, found))
        return found

    ids = [ask("POST", f"/api/photos?name={number}-{p.name}", p.read_bytes())["id"] for p in photos]
    for column in range(2):
        ask("GET", f"/api/pictures/{picture}/tiles/radiance/0/{column}/0")
        ask("GET", f"/api/pictures/{picture}/pixel?x={number}&y={column}")
    return str(ask("POST", "/api/jobs", {"photos": ids})["id"])


def load(clients: int, rounds: int, place: Path) -> None:
    """First half."""
    served = Served("--model", "none", place=place)
    small = resized(place, 600, 400)
    try:
        first = served.merged([served.upload(p)["id"] for p in small])
        for number in range(rounds):
            times: list[float] = []
            failures: list[object] = []
            began = time.monotonic()
            with ThreadPoolExecutor(clients) as pool:
                jobs = list(pool.map(partial(client, served, small, first["picture"], times, failures), range(clients)))
            took = time.monotonic() - began
            states = [served.ended(j)["state"] for j in jobs]
            for job in jobs:
                served.ask("DELETE", f"/api/jobs/{job}")
            for photo in served.ask("GET", "/api/photos")[1]:
                served.ask("DELETE", f"/api/photos/{photo['id']}")
            print(
                f"round {number + 1}: {clients} clients, {len(times)} requests, {len(times) / took:.0f} a second, "
                f"median {statistics.median(times) * 1e3:.0f} ms, slowest {max(times) * 1e3:.0f} ms, {len(failures)} failed; "
                f"{states.count('done')} of {clients} merges done; memory {rss_mb(served.process.pid):.0f} MB"
            )
    finally:
        served.close()


def look(megapixels: float, place: Path) -> None:
    """Second half."""
    from playwright.sync_api import sync_playwright

    served = Served("--model", "none", place=place)
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    photos = resized(place, width, round(width / 1.5))
    try:
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            paints = []
            for _ in range(5):
                page.goto(served.url)
                page.wait_for_selector("html[data-ready]")
                time.sleep(0.3)
                paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
            print(f"first paint: {', '.join(f'{p:.0f}' for p in paints if p is not None)} ms")
            began = time.monotonic()
            page.set_input_files("#files", [str(p) for p in photos])
            page.wait_for_selector(".bracket button.main", timeout=120_000)
            print(f"three photos of {megapixels:g} megapixels on the page: {time.monotonic() - began:.1f} s")
            began = time.monotonic()
            page.click(".bracket button.main")
            page.wait_for_selector("#viewer:not([hidden])", timeout=300_000)
            print(f"merge to picture: {time.monotonic() - began:.1f} s; folder {disk_mb(served.folders[0]):.0f} MB")
            time.sleep(2)
            times, coarse = page.evaluate(EXPLORE, 60)
            size = page.evaluate("[gmodiff.viewer.size.width, gmodiff.viewer.size.height]")
            print(
                f"panned at 1:1 on a canvas of {size[0]}x{size[1]}: median {statistics.median(times):.1f} ms a frame, "
                f"95 % below {sorted(times)[int(0.95 * len(times))]:.1f} ms; drawn {coarse}x{coarse} coarse (WebGL in software)"
            )
            browser.close()
    finally:
        served.close()


def disk_mb(folder: Path) -> float:
    """Bytes of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def main() -> None:
    """Both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megapixels", type=float, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        load(arguments.clients, arguments.rounds, Path(place))
    reason = missing()
    if reason is not None:
        print(f"no second half: {reason}")
        return
    with tempfile.TemporaryDirectory() as place:
        look(arguments.megapixels, Path(place))


if __name__ == "__main__":
    main()

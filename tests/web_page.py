"""A real `gmodiff serve` in a process of its own, and small requests to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

SOFTWARE_WEBGL = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
"""Chromium's flags: in a container, without a GPU."""

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.jpg"))


def smaller(path: Path, place: Path, size: tuple[int, int] = (300, 200)) -> Path:
    """A copy of a photo with its EXIF, for speed."""
    image = Image.open(path)
    out = place / path.name
    image.resize(size).save(out, exif=image.info["exif"], quality=95)
    return out


class Served:
    """The server, its address and its private folder; ended by `close`."""

    def __init__(self, *options: str, place: Path, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "gmodiff", "serve", "--port", "0", "--no-open", *options]
        self.place = place
        source = str(Path(__file__).parent.parent / "src")
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        surroundings = os.environ | {"TMPDIR": str(place), "PYTHONPATH": path} | (env or {})
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://([^:/]+|\[[^\]]+\]):(\d+)/(?:\?token=(\S+))?", line)
        assert found, (line, self.process.stderr.read() if self.process.poll() is not None else "")
        self.port, self.token = int(found[2]), found[3]
        self.url = f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or bytes, headers). body: bytes as they are, anything else as JSON. Header names: _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {k.replace("_", "-"): v for k, v in headers.items()}
        if data is not None and not isinstance(body, bytes):
            sent["content-type"] = "application/json"
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        content = answer.read()
        found = {k.lower(): v for k, v in answer.getheaders()}
        connection.close()
        is_json = "json" in found.get("content-type", "")
        return answer.status, json.loads(content) if is_json and content else content, found

    def upload(self, path: Path, name: str | None = None) -> dict[str, Any]:
        """One photo's facts."""
        status, found, _ = self.ask("POST", f"/api/photos?name={name or path.name}", path.read_bytes())
        assert status == 200, found
        return found

    def merged(self, photos: list[str], **more: Any) -> dict[str, Any]:
        """A finished job."""
        status, job, _ = self.ask("POST", "/api/jobs", {"photos": photos, **more})
        assert status == 200, job
        return self.ended(job["id"])

    def ended(self, key: str) -> dict[str, Any]:
        """The job, when it is over."""
        for _ in range(2400):
            job = self.job(key)
            if job["state"] not in ("waiting", "running"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {key} does not end: {job}")

    def job(self, key: str) -> dict[str, Any]:
        """As it stands."""
        return next(j for j in self.ask("GET", "/api/jobs")[1] if j["id"] == key)

    @property
    def folders(self) -> list[Path]:
        """Private folders that are there."""
        return sorted(self.place.glob("gmodiff-page-*"))

    def close(self, how: int = signal.SIGINT) -> tuple[int, str]:
        """End it; (exit status, what it wrote on stderr)."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

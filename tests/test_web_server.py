"""The page's server as it runs for users: a process of its own, asked over loopback."""

import io
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import gmodiff
from command_line import run
from web_page import EXAMPLES, Served, smaller


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served("--model", "none", "--max-upload", "20", "--max-pixels", "2000000", place=tmp_path_factory.mktemp("place"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def photos(served):
    return [served.upload(p)["id"] for p in EXAMPLES]


@pytest.fixture(scope="module")
def job(served, photos):
    return served.merged(photos)


def error(answer) -> str:
    status, found, _ = answer
    assert status == 400, found
    assert list(found) == ["error"]
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    return found["error"]


def test_the_page_and_its_parts_are_there_and_ask_for_nothing_elsewhere(served):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/viewer.js", "text/javascript")):
        status, body, headers = served.ask("GET", path)
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert not re.search(rb"(src|href|import|url\(|fetch\()\s*[=(]?\s*['\"]?(https?:)?//", body)
        assert "default-src 'none'" in headers["content-security-policy"]
    assert served.ask("GET", "/docs")[0] == served.ask("GET", "/openapi.json")[0] == 404


def test_photos_are_grouped_by_their_metadata(served, photos):
    status, found, _ = served.ask("POST", "/api/groups", {})
    assert status == 200
    (group,) = [g for g in found["groups"] if {p["id"] for p in g["photos"]} == set(photos)]
    stops = [p["ev"] for p in group["photos"]]
    assert stops == sorted(stops)
    assert group["reference"] in photos
    assert 0.0 in stops


def test_a_merge_is_what_the_library_makes_of_the_same_photos(served, job, tmp_path):
    assert job["state"] == "done", job
    bracket = gmodiff.read_bracket(EXAMPLES)
    image = gmodiff.reconstruct(bracket)
    gmodiff.write(image, tmp_path / "direct.exr")
    status, data, headers = served.ask("GET", f"/api/pictures/{job['picture']}/file.exr?download=1")
    assert status == 200
    assert 'filename="sunset_1_hdr.exr"' in headers["content-disposition"]
    (tmp_path / "served.exr").write_bytes(data)
    mine, theirs = (gmodiff.read(tmp_path / f"{n}.exr") for n in ("served", "direct"))
    assert np.array_equal(mine.radiance, theirs.radiance)
    assert np.array_equal(mine.provenance, theirs.provenance)
    assert job["summary"]["reference"] == bracket.frames[bracket.reference].name
    assert job["summary"]["provenance"] == image.metadata["provenance"]


@pytest.mark.parametrize("suffix", [".jpg", ".exr", ".avif", ".png", ".tif", ".hdr", ".jxl"])
def test_every_format_is_a_file_that_reads_back(served, job, tmp_path, suffix):
    status, data, _ = served.ask("GET", f"/api/pictures/{job['picture']}/file{suffix}")
    assert status == 200, data
    (tmp_path / f"out{suffix}").write_bytes(data)
    assert gmodiff.read(tmp_path / f"out{suffix}").radiance.shape == (800, 1200, 3)


def test_the_summary_is_the_commands(served, job, capsys, tmp_path):
    status, body, _ = served.ask("GET", f"/api/pictures/{job['picture']}/summary.json")
    assert status == 200
    code, out, _ = run(["merge", *map(str, EXAMPLES), "--model", "none", "-o", str(tmp_path / "a.jpg"), "--json"], capsys)
    assert code == 0
    theirs = json.loads(out)
    assert {k: body[k] for k in theirs if k not in ("outputs", "seconds")} == {
        k: theirs[k] for k in theirs if k not in ("outputs", "seconds")
    }


def test_another_rendition_needs_no_new_alignment(served, job):
    before = served.ask("GET", f"/api/pictures/{job['picture']}")[1]
    status, again, _ = served.ask("POST", f"/api/jobs/{job['id']}/render", {"base": "reference", "headroom": 1.0})
    assert status == 200, again
    again = served.ended(again["id"])
    assert again["state"] == "done", again
    after = served.ask("GET", f"/api/pictures/{again['picture']}")[1]
    assert after["gain"]["alternate_headroom"] <= 1.0 < before["gain"]["alternate_headroom"]
    reference = np.asarray(Image.open(next(p for p in EXAMPLES if p.name == job["summary"]["reference"])))
    tile = np.frombuffer(served.ask("GET", f"/api/pictures/{again['picture']}/tiles/base/0/0/0")[1], np.uint8)
    assert np.array_equal(tile.reshape(512, 512, 3), reference[:512, :512])
    assert served.job(job["id"])["picture"] == again["picture"]


def test_only_the_last_renditions_are_kept(served, photos):
    job = served.merged(photos)
    first = job["picture"]
    for stops in (1.0, 1.5, 2.0):
        status, again, _ = served.ask("POST", f"/api/jobs/{job['id']}/render", {"headroom": stops})
        assert status == 200
        served.ended(again["id"])
    assert "not here any more" in error(served.ask("GET", f"/api/pictures/{first}"))
    served.ask("DELETE", f"/api/jobs/{job['id']}")
    assert not [j for j in served.ask("GET", "/api/jobs")[1] if j["id"] == job["id"]]


def test_the_reference_and_exposures_may_be_given(served, photos):
    job = served.merged(photos, reference=photos[0], ev=[-3.0, 0.0, 3.0])
    assert job["summary"]["reference"] == EXAMPLES[0].name
    assert job["summary"]["exposure_source"] == "given"
    assert [f["stops"] for f in job["summary"]["frames"]] == [0.0, 3.0, 6.0]


REFUSED = [
    ({"photos": []}, "2 to 16 photos, these are 0"),
    ({"photos": ["nothing", "there"]}, "not here any more"),
    ({"ev": [1.0]}, "1 exposures for 3 photos"),
    ({"ev": [0.0, 1.0, 99.0]}, "-40 to 40"),
    ({"reference": "else"}, "not one of the photos"),
    ({"settings": {"base": "blue"}}, "base 'blue'"),
    ({"settings": {"headroom": 99}}, "headroom 99"),
    ({"settings": {"network": -1}}, "network -1"),
    ({"settings": {"surprise": 1}}, "surprise"),
    ({"photos": "text"}, "photos"),
    ({"extra": 1}, "extra"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED)
def test_what_cannot_be_merged_is_refused_in_one_line(served, photos, wrong, words):
    assert words in error(served.ask("POST", "/api/jobs", {"photos": photos} | wrong))


def test_a_photo_twice_is_refused(served, photos):
    assert "twice" in error(served.ask("POST", "/api/jobs", {"photos": [photos[0], photos[0]]}))


def test_what_only_pixels_show_ends_the_job_with_the_users_names(served, tmp_path):
    first = served.upload(smaller(EXAMPLES[0], tmp_path), "mine.jpg")["id"]
    second = served.upload(smaller(EXAMPLES[1], tmp_path, (200, 300)), "upright.jpg")["id"]
    job = served.merged([first, second])
    assert job["state"] == "failed"
    assert re.search(r"upright\.jpg is 200x300 but mine\.jpg is 300x200", job["error"])
    same = served.upload(smaller(EXAMPLES[0], tmp_path), "again.jpg")["id"]
    job = served.merged([first, same])
    assert "mine.jpg" in job["error"]
    assert "again.jpg" in job["error"]
    assert "upload-" not in job["error"]


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"hello", "notes.txt", "notes.txt is not a photo"),
        (b"", "nothing.jpg", "empty"),
        (EXAMPLES[0].read_bytes()[:4000], "torn.jpg", "torn.jpg"),
        (b"v/1\x01" + b"\0" * 100, "done.exr", "done.exr is an HDR picture already"),
    ],
)
def test_uploads_that_are_no_photos_are_refused(served, data, name, words):
    assert words in error(served.ask("POST", f"/api/photos?name={name}", data))


def test_too_large_is_refused_before_it_is_sent(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        line.sendall(
            f"POST /api/photos?name=huge.tif HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: 99000000\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        answer = b""
        while b"}" not in answer and (part := line.recv(4096)):
            answer += part
    assert b" 400 " in answer.splitlines()[0]
    assert b"huge.tif is 99 MB, above the limit of 20 MB" in answer


def test_more_pixels_than_allowed_are_refused(served, tmp_path):
    Image.new("RGB", (2001, 1000)).save(tmp_path / "wide.png")
    assert "above the limit of 2000000" in error(served.ask("POST", "/api/photos?name=wide.png", (tmp_path / "wide.png").read_bytes()))


@pytest.mark.parametrize(
    "path",
    ["/api/pictures/../../etc/passwd", "/api/pictures/x/file.jpg/../../../..", "/..%2f..%2fetc/passwd", "/api/photos/..%2Fpid/thumbnail"],
)
def test_no_address_reaches_a_file(served, path):
    status, body, _ = served.ask("GET", path)
    assert status in (400, 404)
    assert b"root:" not in (body if isinstance(body, bytes) else json.dumps(body).encode())


def test_tiles_and_pixels_that_are_not_there_are_refused(served, job):
    key = served.job(job["id"])["picture"]
    for path in (
        "tiles/radiance/0/9/9",
        "tiles/secret/0/0/0",
        "tiles/radiance/x/0/0",
        "pixel?x=5000&y=0",
        "pixel?x=a&y=0",
        "file.gif",
        "file.jpg?quality=0",
    ):
        error(served.ask("GET", f"/api/pictures/{key}/{path}"))


def test_the_checker_tells_what_a_file_holds(served, tmp_path):
    from hdr_samples import picture

    gmodiff.write(picture(64, 96), tmp_path / "mine.jpg")
    status, found, _ = served.ask("POST", "/api/checks?name=theirs.jpg", (tmp_path / "mine.jpg").read_bytes())
    assert status == 200, found
    facts = found["facts"]["check"]
    assert facts["file"] == "theirs.jpg"
    assert set(facts["gain_map"]["forms"]) == {"xmp", "iso", "mpf", "gcontainer"}
    assert facts["gain_map"]["agree"] is True
    assert facts["warnings"] == []
    assert found["gain"]["alternate_headroom"] == pytest.approx(facts["headroom_stops"], abs=1e-5)
    assert len(served.ask("GET", f"/api/pictures/{found['id']}/tiles/gain/0/0/0")[1]) == 64 * 96 * 3 * 2


def test_the_checker_warns_of_a_map_no_index_points_at(served, tmp_path):
    from hdr_samples import picture

    gmodiff.write(picture(64, 96), tmp_path / "mine.jpg")
    data = (tmp_path / "mine.jpg").read_bytes()
    at = data.index(b"MPF\0")
    status, found, _ = served.ask("POST", "/api/checks?name=a.jpg", data[:at] + b"XXX\0" + data[at + 4 :])
    assert status == 200, found
    assert any("MPF" in w for w in found["facts"]["check"]["warnings"])


@pytest.mark.parametrize("data", [b"nothing", b"\xff\xd8\xff\xe0", b"v/1\x01junk", b"#?RADIANCE\n\n-Y 5 +X"])
def test_what_cannot_be_checked_is_one_line(served, data):
    assert error(served.ask("POST", "/api/checks?name=odd.bin", data)).startswith("odd.bin")


def test_progress_is_told_as_it_happens_and_to_a_page_that_comes_back(served, photos):
    seen: list[dict] = []

    def watch(key: str) -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as line:
            line.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
            for raw in line.makefile("rb"):
                if raw.startswith(b"data: "):
                    mine = [j for j in json.loads(raw[6:]) if j["id"] == key]
                    seen.extend(mine)
                    if mine and mine[0]["state"] == "done":
                        return

    status, job, _ = served.ask("POST", "/api/jobs", {"photos": photos})
    assert status == 200
    watcher = threading.Thread(target=watch, args=(job["id"],))
    watcher.start()
    watcher.join(60)
    assert seen[-1]["state"] == "done"
    percents = [j["percent"] for j in seen]
    assert percents == sorted(percents)
    assert len(set(percents)) > 3
    assert len({j["stage"] for j in seen}) > 2


def test_a_cancelled_job_leaves_no_files(served, photos):
    before = {p.name for p in served.folders[0].iterdir()}
    status, job, _ = served.ask("POST", "/api/jobs", {"photos": photos})
    assert status == 200
    while served.job(job["id"])["state"] == "waiting":
        time.sleep(0.01)
    served.ask("POST", f"/api/jobs/{job['id']}/cancel")
    assert served.ended(job["id"])["state"] == "cancelled"
    assert {p.name for p in served.folders[0].iterdir()} == before


def test_twenty_clients_lose_nothing(served, job, tmp_path):
    """Uploads, tiles and read-outs at once; every answer is whole, and every merge ends."""
    key = served.job(job["id"])["picture"]
    small = [smaller(p, tmp_path) for p in EXAMPLES]
    whole = [served.ask("GET", f"/api/pictures/{key}/tiles/radiance/0/{c}/0")[1] for c in range(3)]

    def client(n: int) -> str:
        mine = [served.upload(p, f"{n}-{p.name}")["id"] for p in small]
        for c in range(3):
            assert served.ask("GET", f"/api/pictures/{key}/tiles/radiance/0/{c}/0")[1] == whole[c]
            assert served.ask("GET", f"/api/pictures/{key}/pixel?x={n}&y={c}")[1]["x"] == n
        status, made, _ = served.ask("POST", "/api/jobs", {"photos": mine})
        assert status == 200
        return made["id"]

    with ThreadPoolExecutor(20) as clients:
        jobs = list(clients.map(client, range(20)))
    assert [served.ended(j)["state"] for j in jobs] == ["done"] * 20
    assert served.job(jobs[7])["about"]["names"] == [f"7-{p.name}" for p in small]


def test_a_client_that_goes_away_in_the_middle_of_an_upload_leaves_nothing(tmp_path):
    served = Served("--model", "none", place=tmp_path)
    before = sorted(p.name for p in served.folders[0].glob("upload-*"))
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.sendall(f"POST /api/photos?name=a.jpg HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: 5000000\r\n\r\n".encode())
        line.sendall(bytes(1_500_000))
        for _ in range(200):
            if len(list(served.folders[0].glob("upload-*"))) > len(before):
                break
            time.sleep(0.02)
        else:
            raise AssertionError("the upload never began")
    for _ in range(200):
        if sorted(p.name for p in served.folders[0].glob("upload-*")) == before:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the upload is still there")
    assert served.close()[1] == ""  # no stack trace of what is nobody's fault


def test_other_hosts_and_pages_are_refused(served):
    assert served.ask("GET", "/api/jobs", host="evil.example")[0] == 403
    assert served.ask("POST", "/api/jobs", {"photos": []}, origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_promptly_with_a_page_open_and_a_job_running_and_leaves_nothing(tmp_path, how):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup a server rightly ignores it, and so would this one
    try:
        served = Served("--model", "none", place=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    photos = [served.upload(p)["id"] for p in EXAMPLES]
    (folder,) = served.folders
    assert (folder / "lock").exists()
    page = socket.create_connection(("127.0.0.1", served.port))
    page.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
    assert b"200" in page.recv(100)
    for _ in range(3):
        served.ask("POST", "/api/jobs", {"photos": photos})
    _, errors = served.close(how)
    page.close()
    assert "Traceback" not in errors
    assert not folder.exists()


def test_a_port_in_use_is_one_line(served, capsys):
    code, out, errors = run(["serve", "--port", str(served.port), "--no-open"], capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"gmodiff: --port {served.port} on 127\.0\.0\.1 cannot be used \(.*\): give another, or 0 for any that is free\n", errors
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "203.0.113.9"], "203.0.113.9"),
        (["--host", "no such host"], "--host no such host"),
        (["--model", "missing"], "model 'missing'"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, options, words):
    code, out, errors = run(["serve", "--port", "0", "--no-open", *options], capsys)
    assert (code, out) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1


def test_beyond_this_machine_a_token_is_needed_and_printed(tmp_path):
    served = Served("--host", "0.0.0.0", "--model", "none", place=tmp_path)
    try:
        assert served.token is not None
        assert len(served.token) >= 32
        assert served.ask("GET", "/api/jobs")[0] == 401
        assert served.ask("GET", "/api/jobs", cookie=f"gmodiff_token_{served.port}=guess")[0] == 401
        status, _, headers = served.ask("GET", f"/?token={served.token}")
        assert status == 303
        assert served.ask("GET", "/api/jobs", cookie=headers["set-cookie"].split(";")[0])[:2] == (200, [])
    finally:
        served.close()


def test_the_network_is_followed_as_far_as_asked_and_refined_as_the_command_does(tmp_path, capsys):
    served = Served(place=tmp_path)
    try:
        job = served.merged([served.upload(p)["id"] for p in EXAMPLES])
        assert job["summary"]["model"]["name"] == "compact"

        def light(share: float, refine: float = 0.0) -> np.ndarray:
            wanted = {"network": share, "refine": refine}
            again = served.ended(served.ask("POST", f"/api/jobs/{job['id']}/render", wanted)[1]["id"])
            data = served.ask("GET", f"/api/pictures/{again['picture']}/file.tif")[1]
            (tmp_path / "light.tif").write_bytes(data)
            return gmodiff.read(tmp_path / "light.tif").radiance

        none, half, whole = light(0.0), light(0.5), light(1.0)
        assert np.array_equal(none, gmodiff.reconstruct(gmodiff.read_bracket(EXAMPLES)).radiance)
        assert np.abs(whole - none).max() > 0.01
        assert np.allclose(half, (none + whole) / 2, rtol=1e-5, atol=1e-6)
        assert served.ask("GET", "/api/status")[1]["refines"] is True
        command = ["merge", *map(str, EXAMPLES), "--refine", "1", "-o", str(tmp_path / "refined.tif"), "-q"]
        assert run(command, capsys)[0] == 0
        refined = light(1.0, refine=1.0)
        assert not np.array_equal(refined, whole)
        assert np.array_equal(refined, gmodiff.read(tmp_path / "refined.tif").radiance)
    finally:
        served.close()


def test_a_thumbnail_is_a_small_picture(served, photos):
    status, data, headers = served.ask("GET", f"/api/photos/{photos[0]}/thumbnail")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(data)).size) == 320

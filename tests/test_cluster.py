"""Batches on a dask cluster, here: a scheduler and worker processes, one of which is killed; files in fsspec's memory file system."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

import gmodiff
from batches import pictures
from cards import run_inline, write_card
from command_line import run
from gmodiff import read
from gmodiff.batch.card import read_card
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.storage import _url_of, join
from gmodiff.errors import InputError

distributed = pytest.importorskip("distributed", reason="pip install 'gmodiff[cluster]'")
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("fsspec.implementations.memory")

SOURCE = Path(gmodiff.__file__).parents[1]
NONE = ["--model", "none"]
pytestmark = [
    # Of dask's own event loop, when clusters come and go within one process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cluster(tmp_path):
    """(address, processes): a scheduler and two workers of one thread each, started as on a cluster's machines."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "30s"}
    file = tmp_path / "scheduler.json"
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    processes = [subprocess.Popen(dask, **options)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny",
              "--no-dashboard", "--local-directory", str(tmp_path)]  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        processes += [subprocess.Popen(worker, **options) for _ in range(2)]
        yield json.loads(file.read_text())["address"], processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_makes_the_sets_and_a_killed_worker_loses_none(cluster, tmp_path, capsys, monkeypatch):
    address, (_, *workers) = cluster
    write_card(tmp_path / "card", 8)
    out = tmp_path / "out"
    killed = []
    append = Manifest.append

    def kill_after_two(self, row):
        append(self, row)
        done = [r for r in self.finished.values() if r["status"] == "done"]
        if len(done) == 2 and not killed:
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)

    monkeypatch.setattr(Manifest, "append", kill_after_two)
    code, told, err = run(["batch", str(tmp_path / "card"), "-o", str(out), "--cluster", address, *NONE], capsys)
    assert killed
    assert code == 0, err
    assert "8 sets made" in told
    assert len(pictures(out)) == 8
    for file in out.glob("*.jpg"):
        assert read(file).gain_map is not None
    code, told, _ = run(["batch", str(tmp_path / "card"), "-o", str(out), *NONE], capsys)  # the same manifest, here
    assert "0 sets made, 8 up to date" in told


def test_relative_places_are_the_same_for_workers_that_start_elsewhere(cluster, tmp_path, capsys, monkeypatch):
    here = tmp_path / "here"
    write_card(here / "card", 2)
    monkeypatch.chdir(here)
    code, _, err = run(["batch", "card", "-o", "out", "--cluster", cluster[0], *NONE], capsys)
    assert code == 0, err
    assert len(pictures(here / "out")) == 2
    row = Manifest(here / "out" / "batch.jsonl").finished["IMG_0000_3.jpg"]
    assert row["photos"][0]["place"] == "card/IMG_0000.jpg"
    assert "0 sets made, 2 up to date" in run(["batch", "card", "-o", "out", *NONE], capsys)[1]


def test_a_worker_that_is_lost_while_the_batch_ends_leaves_its_set(tmp_path, monkeypatch):
    from gmodiff.batch import cluster as module
    from gmodiff.batch.one_set import Job, Settings

    stop, ended = module.Stop(), []
    monkeypatch.setattr(module, "_outcome", lambda future, job: None)
    job = Job("a.jpg", str(tmp_path / "a.jpg"), ("x.jpg", "y.jpg"), Settings(model="none"))

    def begun(_):
        stop.finish = True

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as made:
        module.run_on_cluster([job], made.scheduler_address, starting=begun, ended=lambda *told: ended.append(told), stop=stop)
    assert ended == []


def test_a_scheduler_that_goes_away_is_one_line_and_the_next_run_goes_on(cluster, tmp_path, capsys, monkeypatch):
    address, (scheduler, *workers) = cluster
    write_card(tmp_path / "card", 8)
    out = tmp_path / "out"
    append = Manifest.append

    def kill_after_one(self, row):
        append(self, row)
        if any(r["status"] == "done" for r in self.finished.values()):
            scheduler.kill()

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "append", kill_after_one)
        code, _, err = run(["batch", str(tmp_path / "card"), "-o", str(out), "--cluster", address, "-q", *NONE], capsys)
    assert code == 2, err
    assert "run again to go on" in err
    assert err.count("\n") == 1, err
    for worker in workers:  # on a slow machine they may still be at the sets they had begun
        worker.kill()
        worker.wait()
    made = len(pictures(out))
    assert 0 < made < 8
    for file in out.glob("*.jpg"):
        assert read(file).gain_map is not None
    code, _, err = run(["batch", str(tmp_path / "card"), "-o", str(out), *NONE], capsys)
    assert code == 0, err
    assert len(pictures(out)) == 8


@pytest.fixture
def memory_card(tmp_path):
    """memory://card with two brackets; emptied at the end."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for paths in write_card(tmp_path / "local", 2):
        for path in paths:
            system.put_file(str(path), f"/card/{path.name}")
    yield system
    system.store.clear()


def test_photos_and_pictures_in_a_memory_file_system_through_a_cluster(memory_card, tmp_path, capsys):
    options = ["memory://card", "-o", "memory://out/night", "--manifest", str(tmp_path / "night.jsonl"), *NONE]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        code, told, err = run(["batch", *options, "--cluster", cluster.scheduler_address], capsys)
    assert code == 0, err
    assert "2 sets made" in told
    names = sorted(memory_card.find("/out"))
    assert names == ["/out/night/IMG_0000_3.jpg", "/out/night/IMG_0003_3.jpg"]
    (tmp_path / "a.jpg").write_bytes(memory_card.cat_file(names[0]))
    assert read(tmp_path / "a.jpg").gain_map is not None
    assert (tmp_path / "night.html").is_file()


class Hosted(fsspec.implementations.memory.MemoryFileSystem):
    """As sftp:// and ftp://: the host is of the connection, and no part of a path."""

    protocol = "hosted"
    stores: ClassVar[dict[str, dict]] = {}
    cachable = False

    def __init__(self, host, **options):
        super().__init__(**options)
        self.store, self.pseudo_dirs = self.stores.setdefault(host, {}), [""]

    @classmethod
    def _strip_protocol(cls, path):
        inside = path.split("://", 1)[1].partition("/")[2] if "://" in path else path
        return f"/{inside.strip('/')}".rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(url):
        return {"host": url.split("://", 1)[1].partition("/")[0]}


@pytest.fixture
def hosted(tmp_path, monkeypatch):
    """hosted://me@far:22 with a bracket in /card, and another host of the same protocol."""
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    monkeypatch.setattr(Hosted, "stores", {})
    for path in write_card(tmp_path / "local", 1)[0]:
        Hosted("me@far:22").put_file(str(path), f"/card/{path.name}")
    return Hosted


@pytest.mark.parametrize("source", ["hosted://me@far:22/card", "hosted://me@far:22/card/", "hosted://me@far:22", "hosted://me@far:22/"])
def test_user_host_and_port_of_a_card_stay(hosted, source):
    card = read_card([source])
    assert sorted(card.places.values()) == [f"hosted://me@far:22/card/IMG_000{n}.jpg" for n in range(3)]
    with pytest.raises(InputError, match="there is no such file"):
        read_card(["hosted://near/card"])


def test_photos_and_pictures_of_hosts(hosted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.batch.run.run_here", run_inline)
    options = ["-o", "hosted://near/out", "--manifest", str(tmp_path / "m.jsonl"), *NONE]
    for expected in ("1 set made", "0 sets made, 1 up to date"):
        code, told, err = run(["batch", "hosted://me@far:22/card", *options], capsys)
        assert code == 0, err
        assert expected in told
    assert list(hosted("near").store) == ["/out/IMG_0000_3.jpg"]


@pytest.mark.parametrize(
    ("key", "path", "url", "expected"),
    [
        ("bucket/a/b.jpg", "bucket/a", "s3://bucket/a", "s3://bucket/a/b.jpg"),
        ("bucket/a/b.jpg", "bucket", "s3://bucket/", "s3://bucket/a/b.jpg"),
        ("bucket/b.jpg", "bucket/b.jpg", "s3://bucket/b.jpg", "s3://bucket/b.jpg"),
        ("/card/b.jpg", "/card", "memory://card", "memory://card/b.jpg"),
        ("/card/b.jpg", "", "memory://", "memory://card/b.jpg"),
        ("/card/a/b.jpg", "/card/a", "file:///card/a/", "file:///card/a/b.jpg"),
        ("/b.jpg", "/", "sftp://me@host:22/", "sftp://me@host:22/b.jpg"),
        ("/home/b.jpg", "/home", "sftp://host/home", "sftp://host/home/b.jpg"),
    ],
)
def test_the_url_of_what_a_listing_names(key, path, url, expected):
    assert _url_of(key, path, url) == expected


def test_a_memory_file_system_without_a_cluster_and_what_changes_in_it(memory_card, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.batch.run.run_here", run_inline)
    options = ["batch", "memory://card", "-o", "memory://out", "--manifest", str(tmp_path / "m.jsonl"), *NONE]
    assert "2 sets made" in run(options, capsys)[1]
    assert "0 sets made, 2 up to date" in run(options, capsys)[1]
    memory_card.put_file(str(tmp_path / "local" / "IMG_0000.jpg"), "/card/IMG_0000.jpg")  # another stamp, the same content
    assert "0 sets made, 2 up to date" in run(options, capsys)[1]
    memory_card.rm_file("/out/IMG_0003_3.jpg")
    assert "1 set made, 1 up to date" in run(options, capsys)[1]


@pytest.mark.parametrize(
    ("address", "expected"),
    [("tcp://127.0.0.1:9", "no scheduler answers there"), ("what://ever", "not an address"), ("127.0.0.1", "not an address")],
)
def test_no_scheduler_is_one_line(tmp_path, capsys, monkeypatch, address, expected):
    monkeypatch.setattr("gmodiff.batch.cluster.ANSWER_S", 1.0)
    write_card(tmp_path / "card", 1)
    code, _, err = run(["batch", str(tmp_path / "card"), "-o", str(tmp_path / "out"), "--cluster", address, "-q", *NONE], capsys)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_none_leaves_nothing_to_collect(tmp_path, capsys, monkeypatch):
    """A half-made client that is collected while a loop starts keeps that loop from starting: dask's lock waits for itself."""
    monkeypatch.setattr("gmodiff.batch.cluster.ANSWER_S", 1.0)
    write_card(tmp_path / "card", 1)
    made = distributed.utils.asyncio_run
    gc.collect()
    gc.disable()  # by chance it is collected earlier
    try:
        assert run(["batch", str(tmp_path / "card"), "-o", str(tmp_path / "out"), "--cluster", "what://ever", *NONE], capsys)[0] == 2
        monkeypatch.setattr("distributed.utils.asyncio_run", lambda *given, **named: (gc.collect(), made(*given, **named)))
        with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as made_later:
            assert made_later.scheduler_address
    finally:
        gc.enable()


def test_no_workers_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.batch.cluster.ANSWER_S", 2.0)
    write_card(tmp_path / "card", 1)
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        options = ["-o", str(tmp_path / "out"), "--cluster", cluster.scheduler_address, "-q", *NONE]
        code, _, err = run(["batch", str(tmp_path / "card"), *options], capsys)
    assert code == 2
    assert "the scheduler has no workers" in err
    assert err.count("\n") == 1


def test_workers_with_another_version_are_refused(tmp_path, capsys, monkeypatch):
    write_card(tmp_path / "card", 1)
    monkeypatch.setattr("gmodiff.batch.cluster._version", lambda: "0.0.1")
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        options = ["-o", str(tmp_path / "out"), "--cluster", cluster.scheduler_address, "-q", *NONE]
        code, _, err = run(["batch", str(tmp_path / "card"), *options], capsys)
    assert code == 2
    assert "workers have gmodiff 0.0.1" in err


@pytest.mark.parametrize("url", ["memory://nothing", "nosuch://bucket/card"])
def test_a_url_that_leads_nowhere_is_one_line(tmp_path, capsys, url):
    code, _, err = run(["batch", url, "-o", str(tmp_path), "-q"], capsys)
    assert code == 2
    assert url in err
    assert err.count("\n") == 1


def test_a_store_that_refuses_is_a_failed_set(memory_card, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.batch.run.run_here", run_inline)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(memory_card), "put_file", refused)
    options = ["batch", "memory://card", "-o", "memory://out", "--manifest", str(tmp_path / "m.jsonl"), *NONE]
    code, _, err = run(options, capsys)
    assert code == 1
    assert "memory://out/IMG_0000_3.jpg: cannot be written (permission denied)" in err


def test_elsewhere_a_file_appears_under_its_name_when_it_is_complete(tmp_path, monkeypatch):
    """On file systems that are no object stores: file:// stands for sftp:// here."""
    from gmodiff.batch.storage import deliver

    seen = []
    local = type(fsspec.filesystem("file"))
    put = local.put_file

    def watched(self, source, target, **options):
        seen.append(Path(target).name)
        put(self, source, target, **options)

    monkeypatch.setattr(local, "put_file", watched)
    (tmp_path / "made.jpg").write_bytes(b"picture")
    deliver(tmp_path / "made.jpg", join(f"file://{tmp_path}", "a/b.jpg"))
    assert (tmp_path / "a" / "b.jpg").read_bytes() == b"picture"
    assert seen[0].startswith(".")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.jpg"]

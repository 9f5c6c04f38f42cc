"""The full-size model in `gmodiff merge`, `convert` and `models`, and from the library."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import gmodiff
from command_line import run
from gmodiff.errors import GMODiffError
from synthetic import photos, scene

pytestmark = pytest.mark.usefixtures("small_sd21")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i, frame in enumerate(photos(scene(96, 128), noise=0.004).frames):
        path = folder / f"IMG_{i}.png"
        Image.fromarray(frame.encoded).save(path)
        paths.append(str(path))
    return [*paths, "--ev", "-2,0,2"]


def test_merge_with_the_full_size_model(jpegs, backbone, weights, tmp_path, capsys):
    full = ["--model", "sd21", "--backbone", str(backbone), "--weights", str(weights), "--device", "cpu"]
    code, out, err = run(["merge", *jpegs, *full, "-o", str(tmp_path / "a.exr"), "--json"], capsys)
    assert (code, err) == (0, "")
    said = json.loads(out)["model"]
    assert len(said.pop("weights")) == 16
    assert said == {"name": "sd21", "runtime": "torch on cpu, float32", "refine": 0.0, "noise_reduced": False}
    code, out, _ = run(["convert", *full[2:6], "-o", str(tmp_path / "c.safetensors"), "--fold-lora"], capsys)
    assert code == 0
    assert "with their backbone" in out
    code, out, err = run(["merge", *jpegs, "--model", str(tmp_path / "c.json"), "-o", str(tmp_path / "b.exr"), "--json"], capsys)
    assert (code, err) == (0, "")
    code, _, _ = run(["merge", *jpegs, "--model", "none", "-o", str(tmp_path / "none.exr"), "-q"], capsys)
    released, folded, none = (gmodiff.read(tmp_path / f"{name}.exr").radiance for name in ("a", "b", "none"))
    assert np.array_equal(released, folded)
    assert not np.array_equal(released, none)


def test_merge_says_that_it_loads_and_estimates(jpegs, backbone, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.cli.time", SimpleNamespace(monotonic=itertools.count(0.0, 1.0).__next__))  # every stage takes a second
    full = ["--model", "sd21", "--backbone", str(backbone), "--weights", str(weights), "--device", "cpu"]
    code, _, err = run(["merge", *jpegs, *full, "-o", str(tmp_path / "a.exr")], capsys)
    assert code == 0
    stages = [line.split(":")[0] for line in err.splitlines()]
    assert stages[:2] == ["loading", "reading"]
    assert "estimating" in stages


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "sd21"], "--model sd21 needs --backbone PATH_OR_HUB_ID and --weights FOLDER"),
        (["--model", "none", "--backbone", "x"], "--backbone: of the network, and --model is none"),
        (["--model", "sd21", "--backbone", "nowhere", "--weights", "WEIGHTS"], "--backbone nowhere: no such folder"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "BACKBONE"], "dareg_mask.pth and gmodiff.pkl not there"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "WEIGHTS", "--tile", "100"], "tile 100: expected 512"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "WEIGHTS", "--estimate-size", "half"], "sees every pixel"),
    ],
)
def test_what_cannot_be_run_is_one_line(jpegs, backbone, weights, tmp_path, capsys, options, said):
    places = {"BACKBONE": str(backbone), "WEIGHTS": str(weights)}
    code, _, err = run(["merge", *jpegs, "-o", str(tmp_path / "s.exr"), "-q", *(places.get(o, o) for o in options)], capsys)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_in_one_line(backbone, weights, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    for name in ("dareg_mask.pth", "gmodiff.pkl"):
        (tmp_path / "w" / name).write_bytes((weights / name).read_bytes()[:-300])
    places = ["--backbone", str(backbone), "--weights", str(tmp_path / "w")]
    code, _, err = run(["convert", *places, "-o", str(tmp_path / "o.safetensors")], capsys)
    assert code == 2
    assert "download it again" in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_models_says_where_it_is_to_be_had(capsys):
    assert "sd21: the paper's full-size system" in run(["models"], capsys)[1]


def test_from_the_library(backbone, weights):
    made = gmodiff.reconstruct(photos(scene()), gmodiff.load_model("sd21", backbone=str(backbone), weights=str(weights), device="cpu"))
    assert made.degradation is not None
    assert np.isfinite(made.radiance).all()
    with pytest.raises(GMODiffError):
        gmodiff.load_model("sd21")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--offload", "on"], "--offload: of the full-size model"),
        (["--model", "none", "--offload", "off"], "--offload: of the network, and --model is none"),
        (["--model", "sd21", "--backbone", "x", "--weights", "y", "--device", "cpu", "--offload", "on"], "--offload on: device cpu"),
        (["--offload", "maybe"], "--offload"),
    ],
)
def test_offload_where_it_makes_no_sense_is_one_line(jpegs, tmp_path, capsys, options, said):
    code, _, told = run(["merge", *jpegs, *options, "-o", str(tmp_path / "a.jpg")], capsys)
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1

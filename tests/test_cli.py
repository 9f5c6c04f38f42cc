"""The command as a user meets it: files in, files out, one clear line for what cannot be done, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner
from PIL import Image

import gmodiff
from command_line import run
from gmodiff.cli import command
from gmodiff.runtime import load_card
from gmodiff.train.scenes import SIZE_PX
from synthetic import photos, scene

SOURCE = Path(gmodiff.__file__).parents[1]


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[str]:
    """Three JPEGs with EXIF exposures two stops apart."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i, frame in enumerate(photos(scene(240, 320), noise=0.004).frames):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Maker", "Model 1"
        exif.get_ifd(0x8769).update({0x829A: 0.01 * 4.0 ** (i - 1), 0x829D: 8.0, 0x8827: 100})
        path = folder / f"IMG_{i}.jpg"
        Image.fromarray(frame.encoded).save(path, quality=95, subsampling=0, exif=exif)
        paths.append(str(path))
    return paths


def test_merge_writes_every_output_and_says_what_it_did(jpegs, tmp_path, capsys):
    outputs = [tmp_path / name for name in ("s.jpg", "s.exr", "s.hdr", "s.tif", "s.png", "s.avif", "s.jxl")]
    options = [part for o in outputs for part in ("-o", str(o))]
    code, out, err = run(
        ["merge", *jpegs, *options, "--provenance", str(tmp_path / "p.png"), "--save-response", str(tmp_path / "r.json")], capsys
    )
    assert code == 0
    assert all(" s" in line for line in err.splitlines())  # stages that took longer than half a second, one line each
    assert all(o.stat().st_size > 1000 for o in outputs)
    assert "% measured in IMG_1.jpg" in out
    with Image.open(outputs[0]) as picture:
        assert picture.size == (320, 240)
        assert picture.getexif()[0x0110] == "Model 1"
    assert (tmp_path / "p.png").exists()
    code, out, err = run(["merge", *jpegs, "-o", str(tmp_path / "t.jpg"), "--response", str(tmp_path / "r.json"), "-q"], capsys)
    assert (code, out, err) == (0, "", "")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_json_result(jpegs, tmp_path, capsys):
    code, out, err = run(["merge", *jpegs, "-o", str(tmp_path / "s.jpg"), "--json"], capsys)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [f["name"] for f in result["frames"]] == ["IMG_0.jpg", "IMG_1.jpg", "IMG_2.jpg"]
    assert result["reference"] == "IMG_1.jpg"
    assert result["exposure_source"] == "exif"
    assert sum(result["provenance"][k] for k in ("measured_percent", "aligned_percent", "inferred_percent")) == pytest.approx(100, abs=0.1)
    assert 0.2 < result["headroom_stops"] <= 3


def test_the_network_runs_where_it_is_asked_for(jpegs, tmp_path, capsys):
    told = {}
    exact = ["--exact", "--tile", "512", "--estimate-size", "half"]
    for name, options in (("with", []), ("without", ["--model", "none"]), ("exact", ["--model", "compact", *exact])):
        code, out, err = run(["merge", *jpegs, "-o", str(tmp_path / f"{name}.exr"), "--json", *options], capsys)
        assert (code, err) == (0, "")
        told[name] = json.loads(out)["model"]
    assert told["with"]["name"] == told["exact"]["name"] == "compact"
    assert "float32" in told["exact"]["runtime"]
    assert told["without"] is None
    assert (tmp_path / "with.exr").read_bytes() != (tmp_path / "without.exr").read_bytes()


def test_a_model_without_a_refiner_is_one_line(jpegs, tmp_path, capsys):
    for suffix in (".json", ".onnx", ".safetensors"):
        shutil.copy(Path(gmodiff.__file__).parent / "weights" / f"compact{suffix}", tmp_path)
    asked = ["--model", str(tmp_path / "compact.json"), "--refine", "0.5"]
    folder = str(Path(jpegs[0]).parent)
    for words in (["merge", *jpegs, "-o", str(tmp_path / "a.jpg")], ["batch", folder, "--frames", "3", "-o", str(tmp_path / "out"), "-q"]):
        code, _, errors = run([*words, *asked], capsys)
        assert code == 2
        assert "model compact has no refiner (compact-refiner.json would lie beside its card)" in errors
        assert errors.count("\n") == 1
    code, _, errors = run([*words, "--model", "none", "--refine", "1"], capsys)  # a batch
    assert code == 2
    assert errors == "gmodiff: --refine: of the network, and --model is none: leave this out, or leave --model out\n"
    assert not (tmp_path / "out").exists()


def test_a_refined_merge_says_so(jpegs, tmp_path, capsys):
    words = ["merge", *jpegs, "-o", str(tmp_path / "a.jpg"), "--model", "compact"]
    assert "network compact refined 0.5" in run([*words, "--refine", "0.5"], capsys)[1]
    assert "refined" not in run([*words, "--force"], capsys)[1].split("network compact")[1]


def test_a_threshold_is_of_a_refiner(tmp_path, capsys):
    weights = Path(gmodiff.__file__).parent / "weights" / "compact.safetensors"
    code, _, errors = run(["train", "export", "--from", str(weights), "--threshold", "0.3", "-o", str(tmp_path / "y.json")], capsys)
    assert code == 2
    assert "--threshold 0.3 is a refiner's: give the card of its regressor with --guide" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "huge"], "model 'huge': expected compact"),
        (["--model", "compact", "--tile", "20"], "--tile 20: expected"),
        (["--model", "compact", "--tile", "0"], "--tile 0: expected"),
        (["--model", "compact", "--device", "abacus"], "abacus"),
        (
            ["--model", "none", "--device", "abacus", "--tile", "512"],
            "--device, --tile: of the network, and --model is none: leave this out",
        ),
        (["--model", "none", "--refine", "0.5"], "--refine: of the network, and --model is none"),
        (["--model", "compact", "--refine", "1.5"], "--refine 1.5: expected 0 (nothing) to 1"),
        (["--model", "compact", "--refine", "nan"], "--refine nan: expected"),
        (
            ["--model", "gone.json"],
            "--model 'gone.json': there is no such file; expected compact, sd21, none, or the card (.json)",
        ),
    ],
)
def test_a_network_that_cannot_run_is_one_line(jpegs, tmp_path, capsys, options, expected):
    code, _, err = run(["merge", *jpegs, "-o", str(tmp_path / "s.jpg"), "-q", *options], capsys)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_models_are_described(capsys):
    code, out, _ = run(["models"], capsys)
    assert code == 0
    assert re.match(r"compact [0-9a-f]{16}: ", out)
    assert "licence Apache-2.0" in out
    code, out, _ = run(["models", "--json"], capsys)
    assert json.loads(out)[0]["name"] == "compact"


def test_models_fit_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    whole = run(["models"], capsys)[1]
    assert max(map(len, whole.splitlines())) > 200  # for other programs, a fact a line
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    wrapped = run(["models"], capsys)[1]
    assert max(map(len, wrapped.splitlines())) <= 80  # a hash is not broken
    assert wrapped.split() == whole.split()


def test_help_says_the_sizes_that_are_refused(capsys):
    """--help loads neither networks nor their cards."""
    assert f"{4 * load_card('compact').halo_px} or more: less memory" in " ".join(run(["merge", "--help"], capsys)[1].split())
    assert f"at most {SIZE_PX}" in " ".join(run(["train", "regressor", "--help"], capsys)[1].split())


def test_cards_of_ones_own_are_described(tmp_path, capsys):
    shipped = json.loads((Path(gmodiff.__file__).parent / "weights" / "compact-refiner.json").read_text())
    little = {
        k: v for k, v in shipped.items() if k not in ("trained_by", "trained_on", "hours", "steps", "scores", "hardware", "parameters")
    }
    (tmp_path / "mine.json").write_text(json.dumps(little | {"name": "mine"}))
    code, out, err = run(["models", str(tmp_path / "mine.json")], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("mine ")
    assert "compact" not in out.splitlines()[0]
    assert "sd21" not in out
    assert run(["models", str(tmp_path / "nobody.json")], capsys)[0] == 2


def test_a_file_names_the_weights_that_made_it(jpegs, tmp_path, capsys):
    """As `gmodiff models` does: models of one name are not one model."""
    own = json.loads(run(["models", "--json"], capsys)[1])[0]["fingerprint"]
    code, out, _ = run(["merge", *jpegs, "-o", str(tmp_path / "a.jpg"), "--json"], capsys)
    assert code == 0
    assert json.loads(out)["model"]["weights"] == own
    told = json.loads(run(["inspect", str(tmp_path / "a.jpg"), "--json"], capsys)[1])
    assert told["network"]["name"] == f"compact {own}"


def test_default_output_name(jpegs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["merge", *jpegs, "-q"], capsys)[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["IMG_0_hdr.jpg"]


def test_order_of_photos_does_not_matter(jpegs, tmp_path, capsys):
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        assert run(["merge", *[jpegs[i] for i in order], "-o", str(tmp_path / f"{name}.jpg"), "-q"], capsys)[0] == 0
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_strip_and_compact(jpegs, tmp_path, capsys):
    for name, options in (("full", []), ("small", ["--compact", "--strip"])):
        assert run(["merge", *jpegs, "-o", str(tmp_path / f"{name}.jpg"), *options, "-q"], capsys)[0] == 0
    with Image.open(tmp_path / "small.jpg") as picture:
        assert 0x0110 not in picture.getexif()
    assert (tmp_path / "small.jpg").stat().st_size < (tmp_path / "full.jpg").stat().st_size


def test_inspect(jpegs, tmp_path, capsys):
    target = str(tmp_path / "s.jpg")
    run(["merge", *jpegs, "-o", target, "-q"], capsys)
    code, text, _ = run(["inspect", target], capsys)
    assert code == 0
    assert "320" in text
    code, out, _ = run(["inspect", target, "--json", "--preview", str(tmp_path / "p.png"), "--headroom", "1.0"], capsys)
    assert code == 0
    assert json.loads(out)["width"] == 320
    assert cv2.imread(str(tmp_path / "p.png")).shape == (240, 320, 3)


def test_existing_output_is_kept_without_force(jpegs, tmp_path, capsys):
    target = tmp_path / "s.jpg"
    target.write_bytes(b"mine")
    code, _, err = run(["merge", *jpegs, "-o", str(target)], capsys)
    assert code == 2
    assert "--force" in err
    assert target.read_bytes() == b"mine"
    assert run(["merge", *jpegs, "-o", str(target), "--force", "-q"], capsys)[0] == 0
    assert target.stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda j, t: [j[0]], "2 to 16 photos"),
        (lambda j, t: [], "2 to 16 photos"),
        (lambda j, t: [*j, "--ev", "1,2"], "--ev 1, 2: 2 numbers for 3 photos, expected one for each"),
        (lambda j, t: [*j, "--ev", "a,b,c"], "expected one number per photo"),
        (lambda j, t: [*j, "--ev=-2,0,2", "--exposures", "1,2,3"], "one of them"),
        (lambda j, t: [*j, "--reference", "nobody.jpg"], "nobody.jpg"),
        (lambda j, t: [*j, "--response", "rec709"], "rec709"),
        (lambda j, t: [*j, "--headroom", "99"], "0.25 to 6"),
        (lambda j, t: [*j, "--headroom", "nan"], "0.25 to 6"),
        (lambda j, t: [*j, "--max-pixels", "1000"], "1000"),
        (lambda j, t: [j[0], j[0]], "same"),
        (lambda j, t: [j[0], str(t / "missing.jpg")], "missing.jpg"),
        (lambda j, t: [*j, "-o", str(t / "no" / "such" / "s.jpg")], "folder"),
        (lambda j, t: [*j, "-o", str(t / "s.gif")], "gif"),
        (lambda j, t: [*j, "-o", str(t / "s.jpg"), "-o", str(t / "s.jpg")], "s.jpg"),
        (lambda j, t: [*j, "-o", j[0], "--force"], "IMG_0.jpg"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(jpegs, tmp_path, capsys, change, expected):
    before = {p: Path(p).read_bytes() for p in jpegs}
    arguments = change(jpegs, tmp_path)
    if "-o" not in arguments:
        arguments += ["-o", str(tmp_path / "s.jpg")]
    code, out, err = run(["merge", *arguments], capsys)
    assert code == 2
    assert out == ""
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert before == {p: Path(p).read_bytes() for p in jpegs}


def test_our_own_result_is_not_taken_for_a_frame(jpegs, tmp_path, capsys):
    """A second `gmodiff merge *.jpg` finds the first one's result among the photos."""
    target = tmp_path / "IMG_0_hdr.jpg"
    assert run(["merge", *jpegs, "-o", str(target), "-q"], capsys)[0] == 0
    code, _, err = run(["merge", *jpegs, str(target), "-o", str(tmp_path / "again.jpg")], capsys)
    assert code == 2
    assert "IMG_0_hdr.jpg" in err
    assert "gmodiff" in err


def test_help_names_every_option():
    text = CliRunner().invoke(command, ["merge", "--help"]).output
    for parameter in command.commands["merge"].params:
        assert any(option in text for option in parameter.opts) or parameter.name == "photos"
    assert CliRunner().invoke(command, ["--version"]).output.strip().endswith(gmodiff.__version__)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys):
    code, out, _ = run(["completion", shell], capsys)
    assert code == 0
    assert "_GMODIFF_COMPLETE" in out


def test_ctrl_c_leaves_nothing(jpegs, tmp_path):
    """Interrupted in the middle of the work: exit code 130, no output, no temporary file."""
    script = "import gmodiff.pipeline, time; gmodiff.pipeline.merge = lambda *a, **k: (print('here', flush=True), time.sleep(60)); "
    script += "from gmodiff.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, "merge", *jpegs, "-o", str(tmp_path / "s.jpg")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "here"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped" in err
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_line(jpegs, tmp_path, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = run(["merge", *jpegs, "-o", str(tmp_path / "s.jpg"), "-q"], capsys)
    assert code == 2
    assert "no space left" in err
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_and_option(capsys):
    assert run(["merg"], capsys)[0] == 2
    assert run(["merge", "--fast"], capsys)[0] == 2


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("tile 5: expected 384", "--tile 5: expected 384"),
        ("model 'nope': expected compact", "--model 'nope': expected compact"),
        ("exposures [1.0, -1.0] must be positive", "--exposures [1.0, -1.0] must be positive"),
        ("ev 1, 2: 2 numbers", "--ev 1, 2: 2 numbers"),
        (
            "model compact returned values that are not finite: its weights",
            "model compact returned values that are not finite: its weights",
        ),
        ("response file a.json cannot be read", "response file a.json cannot be read"),
        ("photo 'a.jpg': is empty", "photo 'a.jpg': is empty"),
    ],
)
def test_an_arguments_name_is_shown_as_it_is_typed_and_no_other_word(message, shown):
    from gmodiff.cli import _as_typed

    assert _as_typed(message, ["merge", "a.jpg"]) == shown


def test_folders_are_told_what_takes_them(jpegs, tmp_path, capsys):
    folder = tmp_path / "scenes"
    folder.mkdir()
    code, _, err = run(["merge", str(folder), "-q"], capsys)
    assert code == 2
    assert f"{folder} is a folder: give its photos, or sort and merge what it holds with gmodiff batch {folder} -o OUT/" in err
    code, _, err = run(["merge", *jpegs, "-o", str(folder), "-q"], capsys)
    assert code == 2
    assert f"{folder} is a folder; expected the name of a file in it, such as {folder / 'scene.jpg'}" in err
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []

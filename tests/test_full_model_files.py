"""The full-size model by name, and its weights converted to one file."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gmodiff import full_model
from gmodiff.convert import convert
from gmodiff.errors import FileFormatError, InputError, MissingDependencyError, OutputError
from gmodiff.model.sd21 import Sd21
from gmodiff.runtime import load_model
from sd21_standin import assert_same

pytestmark = pytest.mark.usefixtures("small_sd21")

# ---- loading by name ----


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sd21", {}, "--model sd21 needs --backbone PATH_OR_HUB_ID and --weights FOLDER"),
        ("sd21", {"backbone": "x"}, "--model sd21 needs --weights FOLDER"),
        ("sd21", {"backbone": "x", "weights": "y", "runtime": "openvino"}, "runs on torch alone"),
        ("sd21", {"backbone": "x", "weights": "y", "precision": "int8"}, "precision 'int8': expected auto"),
        ("sd21", {"backbone": "x", "weights": "y", "precision": "float16", "exact": True}, "exact is float32"),
        ("sd21", {"backbone": "x", "weights": "y", "device": "abacus"}, "device 'abacus': torch cannot use it"),
        ("sd21", {"backbone": "x", "weights": "y", "device": "meta"}, "device 'meta': torch cannot use it"),
        ("sd21", {"backbone": "x", "weights": "y", "device": "cpu"}, "--weights y: not a folder"),
        ("compact", {"backbone": "x", "weights": "y"}, "--backbone, --weights: of the full-size model"),
        ("compact", {"precision": "float16"}, "--precision: of the full-size model"),
        ("sd21", {"backbone": "x", "weights": "y", "offload": "yes"}, "offload 'yes': expected auto, on, off"),
        ("sd21", {"backbone": "x", "weights": "y", "device": "cpu", "offload": "on"}, "--offload on: device cpu computes in main memory"),
        ("compact", {"offload": "off"}, "--offload: of the full-size model"),
    ],
)
def test_options_that_do_not_go_together(name, options, said):
    with pytest.raises(InputError, match=said):
        load_model(name, **options)


@pytest.mark.parametrize(
    ("device", "build", "said"),
    [
        ("cuda", None, r"device 'cuda': this torch has no CUDA \(.*\): install a CUDA build, or leave --device out$"),
        ("CUDA:1", "12.8", "device 'CUDA:1': no NVIDIA GPU here, or none that torch .* can use: leave --device out$"),
        ("mps", None, "device 'mps': no Apple GPU here: leave --device out$"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, device, build, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    with pytest.raises(InputError, match=said):
        load_model("sd21", backbone="x", weights="y", device=device)


def test_offload_without_a_gpu_does_not_send_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"--offload on: device cpu computes in main memory; leave --offload out$"):
        load_model("sd21", backbone="x", weights="y", offload="on")


@pytest.mark.parametrize(
    ("offload", "free", "waits"), [("auto", 1e12, False), ("auto", 3e9, True), ("on", 1e12, True), ("off", 3e9, False)]
)
def test_parts_wait_where_the_gpu_is_small_or_as_asked(backbone, weights, monkeypatch, offload, free, waits):
    placed = []
    monkeypatch.setattr(full_model, "_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(full_model, "free_bytes", lambda device: free)
    monkeypatch.setattr(Sd21, "place", lambda self, device, dtype, *, offload: placed.append((device.type, offload)))
    load_model("sd21", backbone=str(backbone), weights=str(weights), offload=offload)
    assert placed == [("cuda", waits)]


def test_half_precision_by_name(backbone, weights):
    made = load_model("sd21", backbone=str(backbone), weights=str(weights), device="cpu", precision="bfloat16")
    assert made.runtime == "torch on cpu, bfloat16"


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gmodiff.model.sd21", None)
    with pytest.raises(MissingDependencyError, match=r"gmodiff\[sd21\]"):
        load_model("sd21", backbone="x", weights="y")


# ---- one file ----


@pytest.mark.parametrize("fold", [False, True])
def test_a_converted_file_gives_the_same_numbers(model, backbone, weights, tmp_path, fold):
    card = convert(weights, tmp_path / "mine.safetensors", backbone=str(backbone), fold=fold)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]
    assert json.loads((tmp_path / "mine.json").read_text()) == card
    assert (tmp_path / "mine.safetensors").stat().st_mode & 0o444 == 0o444
    assert card["holds_backbone"] is fold
    assert set(card["made_from"]) == {"dareg_mask.pth", "gmodiff.pkl"}
    assert str(backbone.parent) not in json.dumps(card)  # paths of this machine are nobody's business
    again = load_model(str(tmp_path / "mine.json"), backbone=None if fold else str(backbone), device="cpu")
    assert_same(model.system, again.system)
    given = {"encoded": np.random.default_rng(0).random((3, 3, 40, 50), np.float32), "stops": np.array([0, 2, 4], np.float32)}
    assert np.array_equal(model(given)["gain"], again(given)["gain"])
    assert again.card.fingerprint != model.card.fingerprint
    with pytest.raises(InputError, match="leave --weights out"):
        load_model(str(tmp_path / "mine.json"), weights=str(weights))
    with pytest.raises(InputError, match="holds the backbone already" if fold else "holds the adapters alone"):
        load_model(str(tmp_path / "mine.json"), backbone=str(backbone) if fold else None)


def test_files_that_are_no_conversion_are_refused(backbone, weights, tmp_path):
    convert(weights, tmp_path / "a.safetensors", backbone=str(backbone), fold=True)
    path, card = tmp_path / "a.safetensors", tmp_path / "a.json"
    whole = path.read_bytes()

    def put(content: bytes) -> None:
        path.write_bytes(content)
        facts = json.loads(card.read_text())
        card.write_text(json.dumps(facts | {"sha256": {path.name: full_model.sha256(path)}}))

    path.write_bytes(whole[:-10])
    with pytest.raises(FileFormatError, match="not the weights that the card of model sd21 names"):
        load_model(str(card))
    put(whole[:-10])
    with pytest.raises(FileFormatError, match="not whole"):
        load_model(str(card))
    path.write_bytes(whole)
    kept = load_file(path)
    with safe_open(path, "pt") as stored:
        header = stored.metadata()
    for edit, said in (
        ({"format": "other"}, "weights of 'other'"),
        ({"configs": "{"}, "its header is broken"),
        ({"configs": "{}"}, "no configuration of a system"),
        ({"configs": "[]"}, "its header is broken"),
    ):
        save_file(kept, path, header | edit)
        put(path.read_bytes())
        with pytest.raises(FileFormatError, match=said):
            load_model(str(card))
    kept["more"] = kept.pop("unet.conv_in.bias")
    save_file(kept, path, header)
    put(path.read_bytes())
    with pytest.raises(FileFormatError, match=r"of another model or version; .*\(1 missing: unet\.conv_in\.bias; 1 unexpected: more\)"):
        load_model(str(card))


def test_nothing_is_overwritten_or_left_half_made(backbone, weights, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected a name ending in \.safetensors"):
        convert(weights, tmp_path / "a.bin", backbone=str(backbone))
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already; --force"):
        convert(weights, tmp_path / "a.safetensors", backbone=str(backbone))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="no space left"):
        convert(weights, tmp_path / "b.safetensors", backbone=str(backbone))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "mine"

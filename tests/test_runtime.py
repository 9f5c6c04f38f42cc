"""Models as they are loaded: the files that ship, one engine for several threads, and files that are not what their card says."""

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gmodiff
from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.runtime import load_model, shipped_models

SHIPPED = Path(gmodiff.__file__).parent / "weights"


@pytest.fixture(scope="module")
def compact():
    return load_model()


def test_the_shipped_files_are_small_and_described():
    assert shipped_models() == ["compact", "compact-refiner"]
    sizes = {p.name: p.stat().st_size for p in SHIPPED.iterdir()}
    assert sum(size for name, size in sizes.items() if "refiner" not in name) < 8e6
    assert sum(sizes.values()) < 40e6
    card = json.loads((SHIPPED / "compact.json").read_text())
    assert {"licence", "trained_on", "trained_by", "hours", "steps", "scores", "hardware"} <= set(card)
    assert card["hours"]["regressor"] > 0
    assert card["hours"]["mask"] > 0


def _inputs(seed, side=64):
    dice = np.random.default_rng(seed)
    shapes = {"linear": (3, 3), "coverage": (3, 1), "merged": (1, 3), "encoded": (1, 3)}
    given = {k: dice.random((*channels, side, side), np.float32) for k, channels in shapes.items()}
    return given | {"stops": np.array([0, -2, 2], np.float32)}


def test_two_threads_share_a_model(compact):
    """As merges on the page do, and one of them may let go of memory while the other works."""
    wanted = [compact(_inputs(n))["change"] for n in range(2)]

    def work(n):
        for _ in range(12):
            if not np.array_equal(compact(_inputs(n))["change"], wanted[n]):
                return "another answer"
            compact.rest()
        return ""

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == ["", ""]


def test_a_model_that_rests_holds_nothing_of_what_it_was_given(compact):
    given = _inputs(0)
    wanted = compact(given)["change"]
    held = [weakref.ref(v) for v in given.values()]
    released = []

    class Program:
        def __init__(self, program):
            self.program = program

        def create_infer_request(self):
            return self.program.create_infer_request()

        def release_memory(self):
            released.append(True)
            self.program.release_memory()

    kept = dict(compact._compiled)
    compact._compiled = {key: (Program(program), request) for key, (program, request) in kept.items()}
    del given, kept
    compact.rest()
    gc.collect()
    assert [h() for h in held] == [None] * len(held)
    assert len(released) == len(compact._compiled)
    assert np.array_equal(compact(_inputs(0))["change"], wanted)


@pytest.fixture
def copy(tmp_path):
    for path in SHIPPED.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "compact.json"


def test_a_model_beside_its_card_loads_from_anywhere(copy):
    assert load_model(str(copy)).card.name == "compact"
    assert load_model(str(copy.with_suffix(".onnx"))).card.name == "compact"


def test_weights_that_are_not_those_of_the_card_are_refused(copy):
    weights = copy.with_suffix(".onnx")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="not the weights that the card of model compact names"):
        load_model(str(copy))
    weights.unlink()
    with pytest.raises(InputError, match=r"compact\.onnx: cannot be read"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("runtime", "content"), [("openvino", b"no graph at all"), ("onnxruntime", b"no graph at all"), ("onnxruntime", "newer")]
)
def test_foreign_graphs_are_refused_in_one_line(copy, runtime, content):
    import hashlib

    weights = copy.with_suffix(".onnx")
    if content == "newer":
        import onnx

        model = onnx.load(weights)
        model.opset_import[0].version = 999
        content = model.SerializeToString()
    weights.write_bytes(content)
    card = json.loads(copy.read_text())
    card["sha256"][weights.name] = hashlib.sha256(content).hexdigest()
    copy.write_text(json.dumps(card))
    with pytest.raises(FileFormatError, match="cannot load it") as error:
        load_model(str(copy), runtime=runtime)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"halo_px": 50}, {"stride": 32.0}, {"max_frames": 1}, {"gain_limit": "1.5"}, {"gain_limit": float("nan")}, {"sha256": []}]
)
def test_cards_edited_wrongly_are_refused(copy, wrong):
    copy.write_text(json.dumps(json.loads(copy.read_text()) | wrong))
    with pytest.raises(FileFormatError, match="not a model card"):
        load_model(str(copy))


@pytest.mark.parametrize("text", ["", "5", "null", "[]", '{"format": "other"}', '{"format": "gmodiff-card-1", "name": "x"}'])
def test_cards_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FileFormatError, match="not a model card"):
        load_model(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("huge", {}, "model 'huge': expected compact"),
        ("compact", {"runtime": "tpu"}, "runtime 'tpu': expected auto"),
        ("compact", {"runtime": "onnxruntime", "device": "Abacus"}, "device 'Abacus': this ONNX Runtime has"),
        ("compact", {"runtime": "torch", "device": "abacus"}, "device 'abacus': torch cannot use it"),
    ],
)
def test_unknown_models_runtimes_and_devices_are_named(name, options, said):
    with pytest.raises(InputError, match=said):
        load_model(name, **options)


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="runtime onnxruntime is not installed: pip install onnxruntime"):
        load_model(runtime="onnxruntime")
    monkeypatch.setattr("gmodiff.runtime.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="no runtime for models"):
        load_model()

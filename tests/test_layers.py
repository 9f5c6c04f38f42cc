"""Who may import whom (docs/architecture.md), read from the source; and what `import gmodiff` must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gmodiff

PACKAGE = Path(gmodiff.__file__).parent

ALLOWED = {
    "errors": set(),
    "radiometry": {"errors"},
    "tiling": set(),
    "machine": set(),
    "upsampling": set(),
    "gainmap": {"errors", "radiometry"},
    "image": {"errors", "radiometry", "gainmap"},
    "provenance": {"radiometry", "tiling"},
    "align": {"errors", "flow", "image", "radiometry", "registration", "tiling", "upsampling"},
    "flow": {"radiometry"},
    "registration": {"radiometry"},
    "ridge": {"radiometry"},
    "response": {"radiometry", "ridge"},
    "response_choice": {"radiometry", "response", "ridge"},
    "calibrate": {"align", "errors", "image", "radiometry", "response", "response_choice", "ridge", "tiling"},
    "merge": {"align", "image", "provenance", "radiometry", "tiling"},
    "tonemap": {"errors", "gainmap", "image", "radiometry", "tiling", "upsampling"},
    "model_card": {"errors", "radiometry"},
    # model, full_model: inside what runs torch, when somebody asks for it
    "engines": {"errors", "model", "model_card", "radiometry", "tiling"},
    "runtime": {"engines", "errors", "full_model", "model_card"},
    "refine": {"errors", "gainmap", "radiometry", "model_card", "upsampling"},
    "noise_reduction": {"errors", "image", "provenance", "radiometry", "model_card", "tiling"},
    "estimate": {
        "align",
        "errors",
        "gainmap",
        "image",
        "noise_reduction",
        "provenance",
        "radiometry",
        "refine",
        "model_card",
        "tiling",
        "upsampling",
    },
    "full_estimate": {"align", "errors", "estimate", "gainmap", "image", "provenance", "radiometry", "model_card", "tiling"},
    "full_model": {"errors", "full_estimate", "machine", "model", "radiometry", "model_card"},
    "networks": {"errors", "estimate", "model_card", "refine", "runtime"},
    "stillness": {"merge", "provenance", "radiometry", "tiling", "upsampling"},
    "pipeline": {"align", "errors", "estimate", "image", "merge", "provenance", "radiometry", "model_card", "stillness", "tonemap"},
    "moving_scene": {"errors", "radiometry", "tiling"},
    "simulate": {"errors", "image", "moving_scene", "radiometry", "tiling"},
    "hdrgm": {"errors", "gainmap", "radiometry"},
    "ultrahdr": {"errors", "gainmap", "hdrgm"},
    "photo": {"decode", "errors", "exif", "icc", "radiometry", "raw"},
    "grouping": {"errors", "exif", "exposure", "image", "photo", "radiometry"},
    "bracket": {"calibrate", "errors", "exposure", "hdrgm", "image", "photo", "radiometry", "raw", "response_file"},
}
"""Stage modules and what of this package they may import; modules not named here are the files' ends and the command."""


def imports(module: str) -> set[str]:
    """Names of this package's modules, or folders of modules, that one module imports anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gmodiff."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gmodiff.")}
    return found


FOLDERS = {
    "datasets": set(ALLOWED)
    - {"engines", "model_card", "runtime", "estimate", "noise_reduction", "full_estimate", "full_model", "pipeline"}
    | {"datasets", "decode", "exposure", "floatfiles", "reader"},
    "model": {"errors", "gainmap", "model"},
    # what merges a set is loaded in the worker, when it merges
    "batch": {
        "batch",
        "bracket",
        "errors",
        "exposure",
        "grouping",
        "image",
        "machine",
        "model_card",
        "networks",
        "pipeline",
        "runtime",
        "summary",
        "tiling",
        "writer",
    },
    "web": set(ALLOWED) | {"exposure", "grouping", "inspection", "reader", "summary", "web", "writer"},
    # full_estimate: which frames the published network gets, in training as in use
    "train": set(ALLOWED) - {"full_model"} | {"datasets", "evaluate", "model", "reader", "train", "writer"},
    "evaluate": set(ALLOWED) | {"datasets", "evaluate", "reader", "writer"},
}
"""Folders of modules and what their modules may import beyond themselves: evaluation never a model or training, nothing the command."""


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_folder_imports_only_what_it_may(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        assert imports(f"{folder}/{path.stem}") <= FOLDERS[folder], path.name


def test_only_the_full_size_model_knows_diffusers():
    """And nobody peft: adapters are folded into the weights."""
    for path in sorted(PACKAGE.rglob("*.py")):
        words = [line.split() for line in path.read_text().splitlines()]
        outside = {w[1].split(".")[0] for w in words if len(w) > 1 and w[0] in ("import", "from")}
        assert not outside & {"peft", "transformers", "accelerate"}, path.name
        assert not outside & {"diffusers", "huggingface_hub"} or path.stem.startswith("sd21"), path.name


def test_nobody_imports_the_page():
    for path in PACKAGE.glob("*.py"):
        assert path.stem == "cli" or "web" not in imports(path.stem), path.name


def test_stages_know_nothing_of_evaluation():
    for path in PACKAGE.glob("*.py"):
        if path.stem != "cli":
            assert not imports(path.stem) & {"datasets", "evaluate"}, path.name


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_stage_imports_only_what_it_may(module):
    assert imports(module) <= ALLOWED[module]


def test_nobody_imports_the_command():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("__main__",):
            assert "cli" not in imports(path.stem), path.name


@pytest.mark.parametrize("module", ["errors", "radiometry", "tiling", "gainmap", "image"])
def test_core_modules_load_no_codec_and_no_vision_library(module):
    assert not loaded(f"import gmodiff.{module}") & {"cv2", "PIL", "OpenImageIO", "imagecodecs", "rawpy", "torch", "click", "rich"}


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "onnxruntime", "openvino", "cv2", "PIL", "ray", "numpy", "OpenImageIO", "imagecodecs", "rawpy", "pi_heif"}
    assert not loaded("import gmodiff") & heavy


def test_help_loads_nothing_heavy():
    heavy = {"torch", "cv2", "PIL", "numpy", "OpenImageIO", "rich"}
    assert not loaded("import gmodiff.cli") & heavy


def test_a_worker_loads_nothing_heavy_before_it_has_its_cores():
    """Libraries count cores for their threads when they are loaded."""
    assert not loaded("import gmodiff.batch.workers") & {"cv2", "PIL", "numpy", "openvino", "OpenImageIO", "click", "rich"}


def loaded(statement: str) -> set[str]:
    """Top-level modules in a clean interpreter after a statement."""
    source = str(PACKAGE.parent)
    script = f"import sys; sys.path.insert(0, {source!r}); {statement}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_module_is_named_for_a_kind_of_thing():
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in PACKAGE.rglob("*.py")}

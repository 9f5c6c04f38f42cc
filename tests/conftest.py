"""Fixtures that several test files share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small gain nothing from more, and threads that wait for each other starve where another process has a core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_sd21(monkeypatch):
    """The full-size model at the size of its stand-in."""
    from sd21_standin import SHAPE, WIDTH

    monkeypatch.setattr("gmodiff.model.sd21.PUBLISHED", SHAPE)
    monkeypatch.setattr("gmodiff.model.sd21_backbone.CONTEXT_WIDTH", WIDTH)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A diffusers folder that stands in for Stable Diffusion 2.1."""
    from sd21_standin import write_backbone

    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory) -> Path:
    """The two released files that belong to it."""
    from sd21_standin import write_released

    return write_released(tmp_path_factory.mktemp("released"), backbone)


@pytest.fixture(scope="module")
def system(backbone, weights):
    """The full-size system of the two."""
    from gmodiff.model.released import read_released
    from gmodiff.model.sd21 import assemble
    from gmodiff.model.sd21_backbone import open_backbone
    from sd21_standin import SHAPE, WIDTH

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmodiff.model.sd21_backbone.CONTEXT_WIDTH", WIDTH)
        return assemble(open_backbone(str(backbone)), read_released(weights), SHAPE)


@pytest.fixture
def model(small_sd21, backbone, weights):
    """The full-size model of the two, at its small size."""
    from gmodiff.full_model import load_full_model

    return load_full_model(backbone=str(backbone), weights=str(weights), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of pictures to train on."""
    from training_pictures import write_pictures

    return write_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    """Scenes of those pictures."""
    from gmodiff.train.scenes import SceneStore, find_sources

    return SceneStore(find_sources(data), 1, tmp_path_factory.mktemp("cache"), size=64)


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    """Three brackets and a single photo."""
    from cards import write_card, write_set

    folder = tmp_path_factory.mktemp("card")
    write_card(folder, 3)
    shutil.copy(write_set(folder / "spare", 90, seed=9, minute=30)[0], folder / "IMG_0099.jpg")
    shutil.rmtree(folder / "spare")
    return folder


@pytest.fixture
def inline(monkeypatch):
    """Batches run in this process."""
    from cards import run_inline

    monkeypatch.setattr("gmodiff.batch.run.run_here", run_inline)


@pytest.fixture
def mine(card, tmp_path, inline) -> tuple[Path, Path]:
    """A copy of the card, and a folder where it has been merged."""
    from batches import made

    shutil.copytree(card, tmp_path / "card")
    assert made(tmp_path / "card", tmp_path / "out") == (["0.jpg", "1.jpg", "2.jpg"], [])
    return tmp_path / "card", tmp_path / "out"

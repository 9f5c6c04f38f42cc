"""Methods on scenes whose answer is known: who must be above whom, and that files go to their own scene."""

from dataclasses import replace

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from gmodiff.errors import FileFormatError, InputError
from gmodiff.evaluate.methods import METHODS, _shifted, method
from gmodiff.evaluate.metrics import Scorer, fitted_scale
from gmodiff.evaluate.statistics import CEILINGS
from gmodiff.image import HDRImage
from gmodiff.writer import write
from scenes import small_scene
from synthetic import photos
from synthetic import scene as synthetic_scene

LEARNED = ("compact", "compact-auto")


@pytest.fixture(scope="module")
def still():
    return small_scene(moving=False, height=160, width=200)


def score(how, scene):
    estimate = how.run(scene)
    assert estimate.shape == scene.truth.shape
    assert estimate.dtype == np.float32
    return Scorer(scene)(estimate * np.float32(fitted_scale(estimate, scene) if how.fitted else 1))["psnr_mu"]


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("reference", "mertens")])
def test_merging_a_still_scene_beats_its_reference(still, name):
    assert score(METHODS[name], still) > score(METHODS["reference"], still)


def test_the_oracle_is_the_ceiling(still):
    best = score(METHODS["oracle"], still)
    assert all(best > score(m, still) for m in METHODS.values() if m.name not in ("oracle", "held-truth", *LEARNED))


def test_whoever_sees_the_truth_wins_nothing():
    assert {m.name for m in METHODS.values() if m.sees_truth} == set(CEILINGS)


def test_the_held_truth_is_above_every_merge_and_network_but_not_the_truth():
    """Where the reference measured it stays near the merge, noise and all; where something clipped moved, it is the truth."""
    moving = small_scene(moving=True, height=160, width=200)
    held = METHODS["held-truth"].run(moving)
    assert not np.allclose(held, moving.truth, rtol=0.01)
    best = score(METHODS["held-truth"], moving)
    assert all(best > score(METHODS[name], moving) for name in ("reference", "classical", *LEARNED[:1]))


def test_the_oracle_does_not_fit_what_nobody_knows(still):
    """A car that only the long photo shows, where the truth is not known, must not cost that photo its weight elsewhere."""
    known = np.ones(still.bracket.shape, bool)
    known[60:] = False
    perfect = still.perfect()
    car = perfect.frames[2].encoded.copy()
    car[60:] = 128
    parked = replace(perfect, frames=(*perfect.frames[:2], replace(perfect.frames[2], encoded=car)))
    undisturbed, disturbed = (replace(still, known=known, perfect=lambda b=b: b) for b in (perfect, parked))
    assert score(METHODS["oracle"], disturbed) > score(METHODS["oracle"], undisturbed) - 0.3


def test_ours_keeps_no_ghost_where_opencv_does():
    scene = small_scene(height=160, width=200)
    found = {n: Scorer(scene)(METHODS[n].run(scene))["psnr_mu/motion"] for n in ("classical", "debevec", "reference")}
    assert found["classical"] > found["debevec"] + 5


def test_opencv_methods_are_told_the_reference_and_its_scale(still):
    """Debevec's radiance is that of exposure one, the reference's: no factor is left to fit."""
    estimate = METHODS["debevec"].run(still)
    assert fitted_scale(estimate, still) == pytest.approx(1.0, abs=0.05)


def test_opencv_methods_get_frames_shifted_onto_the_reference():
    light = synthetic_scene(240, 320)
    bracket = photos([np.roll(light, (4, 6), axis=(0, 1)), light, np.roll(light, (-3, -5), axis=(0, 1))], noise=0.002)
    still = photos(light, noise=0.002)
    inside = slice(16, -16), slice(16, -16)
    for shifted, unmoved in zip(_shifted(bracket), still.frames, strict=True):
        apart = np.abs(shifted[inside].astype(int) - unmoved.encoded[inside])
        assert np.median(apart) <= 2


def test_sixteen_bits_reach_opencv_as_eight():
    from gmodiff.datasets.scene import Scene
    from synthetic import photos, scene

    truth = scene(64, 96)
    deep = Scene("deep", photos(truth, dtype=np.uint16), truth)
    assert score(METHODS["debevec"], deep) > 30


def test_only_those_that_guess_the_response_are_fitted():
    assert {m.name for m in METHODS.values() if m.fitted} == {
        "debevec-auto", "robertson-auto", "mertens", "classical-auto", "compact-auto"
    }  # fmt: skip


def test_unknown_methods_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="'magic': expected reference, debevec"):
        method("magic")
    with pytest.raises(InputError, match="is not a folder"):
        method(f"saved:{tmp_path}/nothing")
    with pytest.raises(InputError, match="has no ground truth"):
        METHODS["oracle"].run(type(small_scene())("bare", small_scene().bracket))


# ---- saved results -------------------------------------------------------------------------------------------------------


def test_saved_results_are_scaled_as_told(tmp_path):
    scene = small_scene("hill")
    write(HDRImage(scene.truth / scene.short_white), tmp_path / "hill.exr")
    for suffix, same in (("", True), ("@short", True), ("@reference", False)):
        estimate = method(f"saved:{tmp_path}{suffix}").run(scene)
        assert np.allclose(estimate, scene.truth, rtol=2e-3, atol=1e-4) == same, suffix
    assert method(f"saved:{tmp_path}@fit").fitted


@pytest.mark.parametrize("suffix", [".exr", ".hdr", ".tif", ".npy"])
def test_saved_results_may_be_of_any_float_format_and_are_rgb(tmp_path, suffix):
    scene = small_scene("hill")
    if suffix == ".npy":
        np.save(tmp_path / "hill.npy", scene.truth)
    else:
        write(HDRImage(scene.truth), tmp_path / f"hill{suffix}")
    estimate = method(f"saved:{tmp_path}@reference").run(scene)
    assert Scorer(scene)(estimate)["psnr_mu"] > 48
    assert Scorer(scene)(estimate)["psnr_mu"] > Scorer(scene)(estimate[..., ::-1])["psnr_mu"] + 10


def test_a_file_of_another_name_is_nobodys_result(tmp_path):
    scene = small_scene("hill")
    (tmp_path / "hill").mkdir()
    write(HDRImage(scene.truth), tmp_path / "hill" / "dune.exr")
    write(HDRImage(scene.truth), tmp_path / "hill2.exr")
    with pytest.raises(InputError, match="holds no output for hill"):
        method(f"saved:{tmp_path}").run(scene)


def test_values_that_are_not_finite_are_not_mended_but_refused(tmp_path):
    scene = small_scene("hill")
    cv2.imwrite(str(tmp_path / "hill.tif"), (scene.truth[..., ::-1] / 4 * 65535).clip(0, 65535).astype(np.uint16))
    with pytest.raises(FileFormatError, match="holds uint16 values, expected floating-point"):
        method(f"saved:{tmp_path}").run(scene)
    (tmp_path / "hill.tif").unlink()
    broken = scene.truth.copy()
    broken[3, 4] = np.nan
    out = oiio.ImageOutput.create(str(tmp_path / "hill.exr"))
    out.open(str(tmp_path / "hill.exr"), oiio.ImageSpec(128, 96, 3, oiio.FLOAT))
    out.write_image(broken)
    out.close()
    with pytest.raises(InputError, match="1 pixels that are not finite"):
        method(f"saved:{tmp_path}").run(scene)


def test_results_may_be_called_something(tmp_path):
    assert method(f"ours=saved:{tmp_path}").name == "ours"
    assert method(f"saved:{tmp_path}/").name == method(f"saved:{tmp_path}").name == f"saved:{tmp_path}"
    with pytest.raises(InputError, match="'classical=saved:"):
        method(f"classical=saved:{tmp_path}")


def test_no_result_two_results_and_strange_ones_are_refused(tmp_path):
    scene = small_scene("hill")
    with pytest.raises(InputError, match="holds no output for hill"):
        method(f"saved:{tmp_path}").run(scene)
    np.save(tmp_path / "hill.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(FileFormatError, match="expected floating-point"):
        method(f"saved:{tmp_path}").run(scene)
    (tmp_path / "hill.npy").write_bytes(b"nonsense")
    with pytest.raises(FileFormatError, match="not a NumPy array"):
        method(f"saved:{tmp_path}").run(scene)
    write(HDRImage(scene.truth), tmp_path / "hill.exr")
    with pytest.raises(InputError, match="2 outputs"):
        method(f"saved:{tmp_path}").run(scene)


def test_a_scene_is_never_given_the_result_of_a_longer_name(tmp_path):
    np.save(tmp_path / "hill-2.npy", np.zeros((96, 128, 3), np.float32))
    with pytest.raises(InputError, match="holds no output for hill"):
        method(f"saved:{tmp_path}").run(small_scene("hill"))

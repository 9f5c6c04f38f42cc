"""The full-size model in the pipeline: which frames it gets, and what becomes of its gain map."""

import numpy as np
import pytest
import torch

from gmodiff.align import Alignment, align, warp_rows
from gmodiff.errors import InputError
from gmodiff.estimate import estimator
from gmodiff.full_estimate import FullEstimator, short_middle_long
from gmodiff.gainmap import mu_gain, radiance_from_mu_gain
from gmodiff.merge import merge
from gmodiff.model_card import Card
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.radiometry import CameraResponse
from sd21_standin import SHAPE, Reference
from synthetic import photos, scene

CARD = Card("fake", "", {}, 3, 32, 32, 1.0)
GAMMA = CameraResponse.named("gamma2.2")
STILL = [Alignment()] * 3

pytestmark = pytest.mark.usefixtures("small_sd21")


class Fake:
    """A gain map of one value everywhere, and what it was given."""

    card, runtime = CARD, "numpy"

    def __init__(self, gain: float = 0.5, mask: float = 0.25) -> None:
        self.gain, self.mask, self.given = gain, mask, None

    def __call__(self, inputs, *, tile_px=None, progress=None):
        self.given = inputs
        if progress is not None:
            progress(1.0)
        size = inputs["encoded"].shape[2:]
        return {"gain": np.full((1, 3, *size), self.gain, np.float32), "degradation": np.full((1, 1, *size), self.mask, np.float32)}


# ---- which frames ----


@pytest.mark.parametrize(
    ("stops", "reference", "wanted"),
    [
        ((-2.0, 0.0, 2.0), 1, (0, 1, 2)),
        ((-2.0, 0.0), 1, (0, 1, 1)),
        ((0.0, 2.0), 0, (0, 0, 1)),
        ((-4.0, -2.0, 0.0, 2.0, 4.0), 2, (0, 2, 4)),  # two stops less still clips the disc of the scene
        ((-6.0, -4.0, -2.0, 0.0, 1.0, 4.0), 3, (1, 3, 5)),
        ((-1.0, 0.0, 1.0, 2.0, 3.0), 1, (0, 1, 2)),
    ],
)
def test_best_short_middle_and_long(stops, reference, wanted):
    light = scene() * 1.5  # its disc is 4.8: white two stops below the reference's is 4
    assert short_middle_long(photos(light, stops, reference)) == wanted


def test_the_network_gets_gamma_and_stops_relative_to_the_short_frame():
    """With a gamma of 2.2, stored values as they are; with any response, its light."""
    fake = Fake()
    bracket = photos(scene(), response=GAMMA, dtype=np.uint16)
    FullEstimator(fake)(bracket, STILL, np.ones((96, 128, 3), np.float32))
    np.testing.assert_allclose(fake.given["stops"], [0, 2, 4], atol=1e-6)
    for n, frame in enumerate(bracket.frames):
        np.testing.assert_allclose(fake.given["encoded"][n].transpose(1, 2, 0), frame.encoded / 65535, atol=1e-3)
    bracket = photos(scene())  # sRGB
    FullEstimator(fake)(bracket, STILL, np.ones((96, 128, 3), np.float32))
    linear = bracket.response.linearise(bracket.frames[2].encoded)
    np.testing.assert_allclose(fake.given["encoded"][2].transpose(1, 2, 0) ** 2.2, linear, atol=1e-4)


def test_frames_come_aligned_and_where_they_saw_nothing_show_nothing_new():
    light = scene(120, 160)
    bracket = photos([np.roll(light, 9, axis=1), light, np.roll(light, -7, axis=1)], response=GAMMA, noise=0.004)
    alignments = align(bracket)
    fake = Fake()
    FullEstimator(fake)(bracket, alignments, np.ones((120, 160, 3), np.float32))
    warped, coverage = warp_rows(bracket.frames[0], alignments[0], 0, 120)
    assert coverage is not None
    seen, unseen = coverage > 0.999, coverage < 0.001
    assert seen.any()
    assert unseen.any()
    given = fake.given["encoded"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(given[seen], warped[seen] / 255, atol=2e-3)
    reference = bracket.frames[1].encoded / 255
    np.testing.assert_allclose(given[unseen], (reference[unseen] ** 2.2 / 4) ** (1 / 2.2), atol=2e-3)


# ---- what becomes of the gain map ----


def test_radiance_is_the_papers_formula_up_to_its_cap():
    bracket = photos(scene(), response=GAMMA)
    encoded = bracket.frames[1].encoded / np.float32(255)
    for gain in (0.0, 0.3, 1.0):
        found = FullEstimator(Fake(gain))(bracket, STILL, np.zeros((96, 128, 3), np.float32))
        wanted = (encoded + 1 / 64) * (101**gain - 1) / 100 * 4  # 4: the short frame's white in the reference's
        np.testing.assert_allclose(found.radiance, wanted, atol=1e-2, rtol=1e-3)
    assert (found.degradation == 64).all()


def test_more_light_than_the_network_can_say_is_the_merges():
    bracket = photos(scene(), response=GAMMA)
    merged = np.full((96, 128, 3), 0.5, np.float32)
    merged[:20] = 50.0
    merged[20:30, :, 0] = 50.0
    found = FullEstimator(Fake(1.0))(bracket, STILL, merged)
    assert (found.radiance[:20] == 50).all()
    assert (found.radiance[20:30, :, 0] == 50).all()
    assert found.radiance[20:, :, 1:].max() < 4.1
    assert not found.invented[:20].any()
    assert found.invented[30:].any()
    merged[...] = radiance_from_mu_gain(np.full_like(merged, 1.0), bracket.frames[1].encoded / np.float32(255)) * 4
    merged[..., 0] *= 2  # one channel beyond, and the others as the network has them: nothing is made up
    assert not FullEstimator(Fake(0.999))(bracket, STILL, merged).invented.any()


def test_invented_is_what_departs_from_the_merge():
    bracket = photos(scene(), response=GAMMA)
    encoded = bracket.frames[1].encoded / np.float32(255)
    merged = radiance_from_mu_gain(np.full_like(encoded, 0.5), encoded) * 4
    assert not FullEstimator(Fake(0.5))(bracket, STILL, merged).invented.any()
    assert not FullEstimator(Fake(0.54))(bracket, STILL, merged).invented.any()
    assert FullEstimator(Fake(0.58))(bracket, STILL, merged).invented.all()
    assert float(mu_gain(merged / 4, encoded).max()) == pytest.approx(0.5, abs=1e-3)


def test_a_network_that_breaks_is_refused():
    with pytest.raises(InputError, match="not finite in numpy: try --exact"):
        FullEstimator(Fake(float("nan")))(photos(scene()), STILL, np.ones((96, 128, 3), np.float32))


def test_tiles_below_the_blend_are_refused():
    with pytest.raises(InputError, match="tile 100: expected 512"):
        FullEstimator(Fake(), 100)


def test_the_whole_road(model, backbone, weights):
    """From a bracket to the constrained radiance, the gain map checked against the plain computation on the way."""
    bracket = photos(scene(), response=GAMMA)
    told = []
    made = reconstruct_radiance(bracket, model, align=False, progress=lambda stage, fraction: told.append((stage, fraction)))
    assert ("estimate", 1.0) in told
    assert made.degradation is not None
    encoded = np.stack([f.encoded.transpose(2, 0, 1) for f in bracket.frames]) / np.float32(255)
    gain = Reference(backbone, weights, SHAPE)(torch.from_numpy(encoded), torch.tensor([1.0, 4.0, 16.0]))[0].permute(1, 2, 0).numpy()
    found = estimator(model)(bracket, STILL, merge(bracket, STILL).radiance)
    reference = encoded[1].transpose(1, 2, 0)
    capped = merge(bracket, STILL).radiance / 4 > reference + 1 / 64
    assert capped.mean() < 0.1
    wanted = radiance_from_mu_gain(gain, reference) * 4
    np.testing.assert_allclose(mu_gain(found.radiance / 4, reference)[~capped], mu_gain(wanted / 4, reference)[~capped], atol=2e-3)
    measured = (bracket.frames[1].encoded < 0.9 * 255) & (bracket.frames[1].encoded > 50)
    own = bracket.response.linearise(bracket.frames[1].encoded)
    assert np.abs(made.radiance - own)[measured].max() < 0.05  # whatever random weights say


def test_the_model_says_what_it_takes(model):
    assert model.card.max_frames == 3
    assert model.runtime == "torch on cpu, float32"
    with pytest.raises(InputError, match=r"expected \(3, 3, H, W\) and \(3,\)"):
        model({"encoded": np.zeros((2, 3, 8, 8), np.float32), "stops": np.zeros(2, np.float32)})
    for size in ((0, 8), (8, 0)):
        with pytest.raises(InputError, match="there is no pixel in them"):
            model({"encoded": np.zeros((3, 3, *size), np.float32), "stops": np.zeros(3, np.float32)})
    whole = {"encoded": np.full((3, 3, 8, 8), 0.5, np.float32), "stops": np.array([0, 2, 4], np.float32)}
    for name, wrong in (("encoded", np.nan), ("encoded", np.inf), ("stops", np.nan), ("stops", -np.inf)):
        broken = {k: v.copy() for k, v in whole.items()}
        broken[name].flat[1] = wrong
        with pytest.raises(InputError, match="frames or stops with values that are not finite"):
            model(broken)
    for tile in (128, 256, 511, 0, -1):
        with pytest.raises(InputError, match=f"tile {tile}: expected 512 pixels a side or more"):
            model(whole, tile_px=tile)
    gain = model({"encoded": np.full((3, 3, 40, 50), 0.5, np.float32), "stops": np.array([0, 2, 4], np.float32)})
    assert {k: v.shape for k, v in gain.items()} == {"gain": (1, 3, 40, 50), "regressed": (1, 3, 40, 50), "degradation": (1, 1, 40, 50)}

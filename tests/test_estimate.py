"""The network on a bracket: tiles that nobody can see, the same bytes twice, any runtime, and files that are what their card says."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from gmodiff.align import Alignment, align, warp_rows
from gmodiff.datasets.scene import Scene, with_masks
from gmodiff.errors import InputError
from gmodiff.estimate import BESIDE_BRIGHT_PX, TILE_AREA_PX, Estimate, Estimator, frames_for
from gmodiff.gainmap import mu_gain, radiance_from_mu_gain
from gmodiff.image import Bracket
from gmodiff.merge import merge
from gmodiff.model_card import Card
from gmodiff.moving_scene import Motion
from gmodiff.pipeline import reconstruct, reconstruct_radiance
from gmodiff.provenance import ALIGNED, INFERRED, REFERENCE
from gmodiff.radiometry import CameraResponse
from gmodiff.runtime import load_model
from gmodiff.simulate import Camera, simulate
from gmodiff.tiling import tile_cores, tile_shape
from scenes import small_scene
from synthetic import photos, scene

CARD = Card("fake", "", {}, 9, 32, 32, 1.5)


class Fake:
    """Adds a gain that depends on where a pixel lies in its tile only through its inputs."""

    card, runtime = CARD, "numpy"

    def __init__(self, change: float = 0.0, residual: float = 0.0) -> None:
        self.change, self.residual, self.seen = change, residual, []

    def __call__(self, inputs):
        self.seen.append({k: v.shape for k, v in inputs.items()})
        flat = inputs["merged"].shape[2:]
        return {
            "change": np.full((1, 3, *flat), self.change, np.float32) * inputs["encoded"],
            "residual": np.full((1, 1, *flat), self.residual, np.float32),
            "degradation": np.full((1, 1, flat[0] // 4, flat[1] // 4), 0.5, np.float32),
        }


@pytest.fixture(scope="module")
def moving():
    return small_scene(height=300, width=580)


@pytest.fixture(scope="module")
def aligned(moving):
    alignments = align(moving.bracket)
    return moving.bracket, alignments, merge(moving.bracket, alignments).radiance


@pytest.fixture(scope="module")
def compact():
    return load_model()


# ---- tiles ----


@pytest.mark.parametrize("tile", [(128, 128), (160, 224), (4096, 4096)])
def test_every_pixel_gets_its_own_gain_whatever_the_tiles(aligned, tile):
    bracket, alignments, merged = aligned
    estimate = Estimator(Fake(0.2), tile)(bracket, alignments, merged)
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    white = 1 / bracket.relative_exposures[0]
    wanted = radiance_from_mu_gain(np.minimum(mu_gain(merged / white, encoded) + 0.2 * encoded, 1.5), encoded) * white
    np.testing.assert_allclose(estimate.radiance, wanted, rtol=2e-4, atol=1e-5)
    assert (estimate.degradation == 128).all()


def test_tiles_have_one_size_and_cover_the_stride(aligned):
    bracket, alignments, merged = aligned
    fake = Fake()
    Estimator(fake, (128, 160))(bracket, alignments, merged)
    assert {s["linear"] for s in fake.seen} == {(3, 3, 128, 160)}


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (4000, 3000), (1500, 2000), (1001, 1501), (37, 51), (600, 9000)])
def test_tiles_are_chosen_for_least_work(height, width):
    rows, columns = tile_shape(height, width, None, TILE_AREA_PX, CARD.halo_px, CARD.stride)
    assert rows % 32 == 0
    assert columns % 32 == 0
    assert rows * columns <= TILE_AREA_PX
    count = len(tile_cores(height, rows, CARD.halo_px)) * len(tile_cores(width, columns, CARD.halo_px))
    assert count * rows * columns <= 1.2 * (height + 31) * (width + 31)


@pytest.mark.parametrize("size", [(256, 320), (255, 319)])
@pytest.mark.parametrize("tile", [None, (128, 128)])
def test_half_size_sees_means_and_moves_the_whole_picture(size, tile):
    """What the network is given are means of four; what it says between them is bilinear; the merge keeps its detail."""
    bracket = photos(scene(*size), noise=0.004)
    merged = merge(bracket, [Alignment()] * 3).radiance
    fake = Fake(0.2, residual=0.1)
    estimate = Estimator(fake, tile, 2)(bracket, [Alignment()] * 3, merged)
    assert estimate.invented.all()
    assert (estimate.degradation == 128).all()
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    even = np.pad(encoded, ((0, -size[0] % 2), (0, -size[1] % 2), (0, 0)), mode="edge")
    means = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 3).mean(axis=(1, 3), dtype=np.float32)
    moved = cv2.resize(0.2 * means, even.shape[1::-1], interpolation=cv2.INTER_LINEAR)[: size[0], : size[1]]
    white = 1 / bracket.relative_exposures[0]
    wanted = radiance_from_mu_gain(np.minimum(mu_gain(merged / white, encoded) + moved, 1.5), encoded) * white
    np.testing.assert_allclose(estimate.radiance, wanted, rtol=2e-4, atol=1e-5)


def test_large_pictures_are_estimated_smaller(monkeypatch):
    bracket = photos(scene(96, 160))
    fake = Fake()
    for pixels, side in ((96 * 160, 160), (96 * 160 // 4, 96), (96 * 160 // 9, 64)):  # 80 pixels fill up to 96, 54 to 64
        monkeypatch.setattr("gmodiff.estimate.ESTIMATED_PX", pixels)
        Estimator(fake)(bracket, [Alignment()] * 3, np.ones((96, 160, 3), np.float32))
        assert fake.seen[-1]["linear"][3] == side


def test_the_halo_is_as_far_as_the_network_sees(compact):
    model = load_model(exact=True)
    halo = model.card.halo_px
    rng = np.random.default_rng(0)
    shape = (64, 4 * halo)
    given = {
        "linear": rng.random((3, 3, *shape), np.float32), "stops": np.array([0, -2, 2], np.float32),
        "coverage": np.ones((3, 1, *shape), np.float32), "merged": rng.random((1, 3, *shape), np.float32) * 4,
        "encoded": rng.random((1, 3, *shape), np.float32),
    }  # fmt: skip
    other = {k: v.copy() for k, v in given.items()}
    for name in ("linear", "merged", "encoded"):
        other[name][..., 2 * halo :] = 0.5
    apart = np.abs(model(given)["change"] - model(other)["change"])
    assert apart[..., :halo].max() < 1e-3
    assert apart[..., 2 * halo :].max() > 1e-2


@pytest.mark.parametrize("exact", [True, False])
def test_no_seam_between_tiles(compact, aligned, exact):
    bracket, alignments, merged = aligned
    model = load_model(exact=exact)
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    white = np.float32(1 / bracket.relative_exposures[0])
    side = 4 * model.card.halo_px
    whole, tiled = (
        mu_gain(Estimator(model, tile)(bracket, alignments, merged).radiance / white, encoded) for tile in ((4096, 4096), (side, side))
    )
    assert np.abs(whole - tiled).max() < 1e-3
    assert bracket.shape[1] > side  # there is a seam


def test_small_and_odd_pictures_pass(compact):
    bracket = photos(scene(37, 51))
    made = reconstruct_radiance(bracket, compact)
    assert made.radiance.shape == (37, 51, 3)
    assert np.isfinite(made.radiance).all()
    assert made.degradation is not None
    assert made.degradation.shape == (37, 51)


def test_a_tile_too_small_is_refused(compact):
    with pytest.raises(InputError, match="expected 512 pixels a side or more"):
        Estimator(compact, (64, 64))


def test_out_of_memory_says_what_to_do(aligned):
    class Full(Fake):
        def __call__(self, inputs):
            raise MemoryError

    with pytest.raises(InputError, match="give a smaller --tile"):
        Estimator(Full())(*aligned)


@pytest.mark.parametrize("name", ["change", "residual", "degradation"])
def test_a_broken_network_is_refused(aligned, name):
    class Broken(Fake):
        def __call__(self, inputs):
            said = super().__call__(inputs)
            return said | {name: np.full_like(said[name], np.nan)}

    with pytest.raises(InputError, match="fake returned values that are not finite"):
        Estimator(Broken())(*aligned)


class Echo(Fake):
    """Says what it was given: the second frame's light and coverage, and how many stops it is away."""

    def __call__(self, inputs):
        found = super().__call__(inputs)
        light = inputs["linear"][1] * inputs["coverage"][1]
        return found | {"change": 0.2 * light[None] * np.float32(2.0 ** float(inputs["stops"][1]))}


def test_frames_come_aligned_covered_and_in_order():
    """A shaken bracket, taller than two tiles: what the network is given in tiles is what it is given whole."""
    light = scene(420, 200)
    bracket = photos([np.roll(light, 6, axis=1), light, np.roll(light, -5, axis=1)], noise=0.004)
    alignments = align(bracket)
    assert not all(a.is_identity for a in alignments)
    merged = merge(bracket, alignments).radiance
    whole, tiled = (Estimator(Echo(), tile)(bracket, alignments, merged).radiance for tile in ((1024, 1024), (128, 128)))
    np.testing.assert_allclose(whole, tiled, rtol=1e-6)
    warped, coverage = warp_rows(bracket.frames[0], alignments[0], 0, 420)
    light = bracket.response.linearise(warped) * (1 if coverage is None else coverage[..., None]) * bracket.relative_exposures[0]
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    white = 1 / bracket.relative_exposures[0]
    wanted = radiance_from_mu_gain(np.minimum(mu_gain(merged / white, encoded) + 0.2 * light, 1.5), encoded) * white
    np.testing.assert_allclose(whole, wanted, rtol=1e-3, atol=1e-5)


def test_what_is_invented_and_what_is_too_bright():
    bracket = photos(scene())
    merged = np.full((96, 128, 3), 1e6, np.float32)
    estimate = Estimator(Fake(residual=0.1))(bracket, [Alignment()] * 3, merged)
    assert estimate.invented.all()
    assert not Estimator(Fake(residual=0.01))(bracket, [Alignment()] * 3, merged).invented.any()
    limit = radiance_from_mu_gain(np.float32(1.5), bracket.frames[1].encoded / np.float32(255)) * 4
    np.testing.assert_allclose(estimate.radiance, limit, rtol=1e-4)


# ---- frames ----


@pytest.mark.parametrize("count", [2, 9, 16])
def test_more_frames_than_the_model_takes_are_thinned_out(count):
    bracket = photos(scene(), tuple(float(s) for s in np.linspace(-4, 4, count)))
    kept = frames_for(bracket, 9)
    assert kept[0] == bracket.reference
    assert len(kept) == min(count, 9)
    assert sorted({0, count - 1, bracket.reference} - set(kept)) == []
    assert kept[1:] == sorted(kept[1:])
    made = Estimator(Fake())(bracket, [Alignment()] * count, np.ones((96, 128, 3), np.float32))
    assert np.isfinite(made.radiance).all()


def test_frames_much_shorter_than_the_reference_are_left_to_the_merge():
    """In a bracket of eleven stops below the reference all it shows is nearly no gain at all, and a network's noise is a tint."""
    bracket = photos(scene(), (-11.0, -9.0, -6.0, -3.0, 0.0, 2.0), reference=4)
    assert frames_for(bracket, 9) == [4, 2, 3, 5]
    assert frames_for(photos(scene(), (-9.0, 0.0), reference=1), 9) == [1, 0]  # one other is always needed
    fake = Fake(0.1)
    merged = np.full((96, 128, 3), 2.0, np.float32)
    merged[:, 64:] = 2.0**8  # brighter than the white of the shortest that is given
    found = Estimator(fake)(bracket, [Alignment()] * 6, merged).radiance
    beside = 64 - BESIDE_BRIGHT_PX
    assert (found[:, :beside] > 2.0).mean() > 0.95
    np.testing.assert_array_equal(found[:, beside:], merged[:, beside:])


def test_what_the_network_makes_up_is_labelled_inferred():
    provenance = np.array([[REFERENCE, ALIGNED, INFERRED, ALIGNED]], np.uint8)
    estimate = Estimate(np.ones((1, 4, 3), np.float32), invented=np.array([[True, True, True, False]]))
    assert estimate.relabelled(provenance).tolist() == [[REFERENCE, INFERRED, INFERRED, ALIGNED]]


# ---- the shipped model ----


def test_the_model_beats_the_merge_where_things_move(compact):
    """On simulated hand-held photos with people, on average by what cannot be chance."""
    from gmodiff.evaluate.metrics import Scorer

    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        texture = np.exp2(rng.normal(0.6, 0.35, (40, 56, 3))).repeat(8, 0).repeat(8, 1)
        radiance = np.asarray(scene(320, 448, seed) * texture, np.float32)
        camera = Camera(CameraResponse.named("srgb"), jpeg_quality=90)
        motion = Motion(shake_px=3, objects=3, object_size=0.3, travel=0.15)
        made = simulate(radiance, [0.25, 1, 4], camera, motion, seed=seed, reference=1, margin=16)
        score = Scorer(Scene("people", made.bracket, made.truth, with_masks(made.truth, made.bracket, made.motion_mask)))
        classical, learned = (score(reconstruct_radiance(made.bracket, m).radiance) for m in (None, compact))
        gains.append(learned["psnr_mu"] - classical["psnr_mu"])
    assert np.mean(gains) > 0.5, gains


def test_two_runs_agree_to_the_bit(compact, moving):
    first, second = (reconstruct_radiance(moving.bracket, m) for m in (compact, load_model()))
    assert np.array_equal(first.radiance, second.radiance)
    assert np.array_equal(first.degradation, second.degradation)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_runtimes_agree(aligned, runtime):
    bracket, alignments, merged = aligned
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    white = np.float32(1 / bracket.relative_exposures[0])
    gains = [
        mu_gain(Estimator(m)(bracket, alignments, merged).radiance / white, encoded)
        for m in (load_model(exact=True), load_model(runtime=runtime, device="cpu"))
    ]
    assert np.abs(gains[0] - gains[1]).max() < 1e-3


def test_sixteen_bits_are_as_good_as_eight(compact):
    deep, shallow = (photos(scene(), dtype=t) for t in (np.uint16, np.uint8))
    one, other = (reconstruct_radiance(b, compact).radiance for b in (deep, shallow))
    assert np.median(np.abs(np.log2(np.maximum(one, 1e-3) / np.maximum(other, 1e-3)))) < 0.02


def test_only_an_estimate_that_is_nobody_elses_is_worked_on_in_place(compact):
    """Large pictures need the memory of a copy; a model of somebody else's may keep what it answered."""
    bracket, kept = photos(scene()), []

    class Kept:
        fresh = False

        def __call__(self, bracket, alignments, merged, *, progress=None):
            made = Estimator(compact)(bracket, alignments, merged)
            kept[:] = [made.radiance, made.radiance.copy()]
            return replace(made, fresh=self.fresh)

    other, own = Kept(), Kept()
    own.fresh = True
    of_other = reconstruct_radiance(bracket, other).radiance
    assert np.array_equal(*kept)
    assert not np.shares_memory(of_other, kept[0])
    of_own = reconstruct_radiance(bracket, own).radiance
    assert np.shares_memory(of_own, kept[0])
    assert np.array_equal(of_own, of_other)
    assert not np.array_equal(*kept)


def test_reconstruct_keeps_what_the_model_doubts(compact):
    image = reconstruct(photos(scene()), compact)
    assert image.degradation is not None
    assert image.degradation.dtype == np.uint8


def test_a_bracket_that_only_the_reference_saw_is_left_to_it(compact):
    """All frames alike: nothing to add, and the constraint holds whatever the network says."""
    bracket = photos(scene(), (-0.5, 0.0, 0.5))
    bracket = Bracket(tuple(replace(f, encoded=bracket.frames[1].encoded) for f in bracket.frames), 1, bracket.response)
    assert np.isfinite(reconstruct_radiance(bracket, compact).radiance).all()

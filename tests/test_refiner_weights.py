"""The refiner's weights that ship: one network in every file, how far it sees, and what it leaves as it was."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import gmodiff
from gmodiff.estimate import Estimator
from gmodiff.model.refiner import read_refiner
from gmodiff.refine import CONTEXT as CONTEXT_NAMES
from gmodiff.refine import Refinement
from gmodiff.runtime import load_card, load_refiner
from gmodiff.tiling import tile_cores
from refiner_shapes import CONTEXT
from synthetic import photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shipped_refiner():
    return load_refiner("compact")


def test_the_shipped_refiner_belongs_to_the_shipped_regressor(shipped_refiner):
    Refinement(shipped_refiner).check_fits(load_card("compact"))
    files = [p for p in (Path(gmodiff.__file__).parent / "weights").glob("compact-refiner.*") if p.suffix != ".json"]
    assert max(p.stat().st_size for p in files) < 20_000_000  # float16; 40 MB are allowed


def test_the_shipped_files_are_one_network(shipped_refiner):
    dice, context = np.random.default_rng(0), load_card("compact").facts
    assert context["weights"] == shipped_refiner.card.facts["guide"]
    shapes = {"gain": (3, 64, 96), "short": (3, 64, 96), "degradation": (1, 16, 24)}
    shapes |= {k: (c, 64 // f, 96 // f) for k, c, f in zip(CONTEXT_NAMES, CONTEXT, (8, 16, 32), strict=True)}
    given = {k: dice.random((1, *shape), np.float32) for k, shape in shapes.items()}
    by_torch = load_refiner("compact", runtime="torch", device="cpu")
    assert np.abs(shipped_refiner(given)["refined"] - by_torch(given)["refined"]).max() < 1e-3


def test_the_shipped_refiner_sees_no_farther_than_its_halo(shipped_refiner):
    refiner, _ = read_refiner(Path(gmodiff.__file__).parent / "weights" / "compact-refiner.safetensors")
    halo = shipped_refiner.card.halo_px
    size, middle = 2 * halo + 128, slice(halo + 32, halo + 96)
    dice = torch.Generator().manual_seed(0)
    given = [torch.rand((1, 3, size, size), generator=dice), torch.rand((1, 3, size, size), generator=dice)]
    mask = torch.rand((1, 1, size // 4, size // 4), generator=dice)
    context = [torch.randn((1, w, size // f, size // f), generator=dice) for w, f in zip((64, 128, 192), (8, 16, 32), strict=True)]
    with torch.no_grad():
        before = refiner(*given, mask, context)[..., middle, middle]
        for values in (*given, mask, *context):  # beyond it, in the outer 32 pixels, everything changes
            edge = 32 * values.shape[-1] // size
            inner = values[..., edge:-edge, edge:-edge].clone()
            values.mul_(-1).add_(1)
            values[..., edge:-edge, edge:-edge] = inner
        after = refiner(*given, mask, context)[..., middle, middle]
    assert float((before - after).abs().max()) < 1e-3


def test_the_shipped_refiner_changes_only_what_is_doubted_and_nothing_that_was_measured(shipped_refiner):
    """On the example, whose walls have bricks and whose windows have bars: outside the mask not one value changes."""
    from gmodiff.align import align
    from gmodiff.bracket import read_bracket
    from gmodiff.merge import merge
    from gmodiff.pipeline import estimated
    from gmodiff.radiometry import radiance_interval_codes
    from gmodiff.runtime import load_model

    bracket = read_bracket(sorted((Path(__file__).parent.parent / "examples").glob("*.jpg")))
    alignments = tuple(align(bracket))
    merged = merge(bracket, alignments, with_motion=True)
    model, refinement = load_model("compact"), Refinement(shipped_refiner)
    # In the estimate itself, before the pipeline holds what was measured.
    plain = Estimator(model)(bracket, alignments, merged.radiance)
    refined = Estimator(model, refinement=refinement)(bracket, alignments, merged.radiance)
    changed = (refined.radiance != plain.radiance).any(axis=2)
    doubt = plain.degradation.astype(np.float32) / 255
    assert changed.any()
    assert not changed[doubt < refinement.threshold - 0.02].any()
    again = Estimator(model, refinement=refinement)(bracket, alignments, merged.radiance)
    assert np.array_equal(again.radiance, refined.radiance)
    made = estimated(bracket, alignments, merged, Estimator(model, refinement=refinement), keep=True)
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    channels = np.arange(3)
    measured = reference.encoded.max(axis=2) < 225  # nearer to the end a pixel proves less (`radiometry.IntervalTables`)
    least, most = (ends[reference.encoded, channels] for ends in (low * (1 - 1e-5), high * (1 + 1e-5)))
    inside = (made.radiance >= least) & (made.radiance <= most)
    assert inside[measured].all()


def _written_scene(moved: int) -> np.ndarray:
    """(384, 768, 3) radiance: letters, a window grid and faces left; right, light far above the reference's white, before which a dark
    disc stands, `moved` pixels on.
    """
    drawn = np.full((384, 768, 3), 118, np.uint8)
    for y, text in enumerate(("GMODiff 0123", "measured, not", "invented: 4711")):
        cv2.putText(drawn, text, (12, 40 + 34 * y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (217, 210, 200), 2, cv2.LINE_AA)
    for y in range(130, 250, 16):
        for x in range(12, 250, 12):
            cv2.rectangle(drawn, (x, y), (x + 8, y + 11), (65, 80, 98), -1)
    for x in (60, 150, 240):
        cv2.ellipse(drawn, (x, 320), (34, 46), 0, 0, 360, (188, 155, 137), -1, cv2.LINE_AA)
        for eye in (-12, 12):
            cv2.circle(drawn, (x + eye, 308), 4, (50, 50, 50), -1, cv2.LINE_AA)
        cv2.ellipse(drawn, (x, 338), (14, 6), 0, 0, 180, (148, 80, 80), 2, cv2.LINE_AA)
    picture = (drawn / np.float32(255)) ** np.float32(2.2)
    clouds = cv2.GaussianBlur(np.random.default_rng(5).random((384, 384), np.float32), (0, 0), 6)
    picture[:, 384:] = (1.5 + 40 * (clouds - clouds.mean()))[..., None].clip(0.8, 4) * np.array([1.0, 0.97, 0.9], np.float32)
    cv2.circle(picture, (500 + moved, 190), 44, (0.1, 0.07, 0.05), -1)
    return picture


def test_letters_faces_and_windows_outside_the_mask_stay_as_they_are(shipped_refiner):
    """And where the reference measured, whatever the mask says, the answer is within that."""
    from gmodiff.pipeline import reconstruct_radiance
    from gmodiff.radiometry import radiance_interval_codes
    from gmodiff.runtime import load_model

    bracket = photos([_written_scene(moved) for moved in (0, 48, 96)], noise=0.004, seed=3)
    model, refinement = load_model("compact"), Refinement(shipped_refiner)
    plain, refined = (reconstruct_radiance(bracket, Estimator(model, refinement=r)) for r in (None, refinement))
    assert plain.degradation is not None
    doubt = plain.degradation / 255 > refinement.threshold - 0.02
    changed = (plain.radiance != refined.radiance).any(axis=-1)
    assert changed.any()
    assert not changed[~doubt].any()
    assert not changed[:, :352].any()
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    measured = reference.encoded.max(axis=2) < 225
    channels = np.arange(3)
    least, most = (ends[reference.encoded, channels] for ends in (low * (1 - 1e-5), high * (1 + 1e-5)))
    assert ((refined.radiance >= least) & (refined.radiance <= most))[measured].all()


@pytest.fixture(scope="module")
def gain_in_tiles():
    """A scene twice side by side, what is refined where tiles meet: its columns, the model, and the gain in tiles of so many of them."""
    from gmodiff.align import align
    from gmodiff.gainmap import mu_gain
    from gmodiff.merge import merge
    from gmodiff.runtime import load_model

    bracket = photos([np.roll(np.tile(_written_scene(moved), (1, 2, 1)), 80, axis=1) for moved in (0, 48, 96)], noise=0.004, seed=3)
    alignments = tuple(align(bracket))
    merged = merge(bracket, alignments, with_motion=True).radiance
    model = load_model("compact", exact=True)
    encoded = bracket.frames[bracket.reference].encoded / np.float32(255)
    white = np.float32(1 / bracket.relative_exposures[0])

    def gain(columns, refinement=None):
        made = Estimator(model, (4096, columns), refinement=refinement)(bracket, alignments, merged)
        return mu_gain(made.radiance / white, encoded)

    return bracket.shape[1], model, gain


def test_no_seam_between_tiles_that_are_refined(shipped_refiner, gain_in_tiles):
    """It gets what the tiles made when all of them are done."""
    width, model, gain = gain_in_tiles
    whole, tiled, plain = gain(4096, Refinement(shipped_refiner)), gain(704, Refinement(shipped_refiner)), gain(4096)
    seam = tile_cores(width, 704, model.card.halo_px)[0][1]
    assert np.abs(whole - plain)[:, seam - 4 : seam + 4].max() > 3e-3
    assert np.abs(whole - tiled).max() < 1e-3


@pytest.mark.parametrize("columns", [576, 672, 800])
def test_no_seam_between_tiles_where_something_bright_moved(gain_in_tiles, columns):
    """Here a halo of 96 pixels left 1.5e-3."""
    width, _, gain = gain_in_tiles
    assert width > columns
    assert np.abs(gain(4096) - gain(columns)).max() < 1e-3

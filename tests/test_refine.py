"""The refiner in the pipeline: nothing where nothing is doubtful, detail without colour where something is, no seams, never unmeasured."""

from dataclasses import replace

import numpy as np
import pytest

from gmodiff.align import align
from gmodiff.errors import InputError
from gmodiff.estimate import Estimator
from gmodiff.image import Bracket
from gmodiff.merge import merge
from gmodiff.model_card import Card
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.provenance import ALIGNED, INFERRED, REFERENCE
from gmodiff.radiometry import radiance_interval_codes
from gmodiff.refine import CONTEXT, CORE_PX, Refinement
from scenes import small_scene

GUIDE = Card("fake", "", {}, 9, 32, 32, 1.5, facts={"weights": "0123"})
REFINER = Card("fake-refiner", "", {}, 9, 32, 32, 1.5, "refiner", {"threshold": 0.5, "guide": "0123"})


class Guide:
    """Changes nothing; doubts columns from `doubtful` on. The mask follows from the picture alone, as a network's does."""

    card, runtime = GUIDE, "numpy"

    def __init__(self, doubt: np.ndarray) -> None:
        self.doubt, self.calls = doubt, 0

    def __call__(self, inputs):
        height, width = inputs["merged"].shape[2:]
        doubt = np.pad(self.doubt, ((0, max(0, height // 4 - self.doubt.shape[0])), (0, max(0, width // 4 - self.doubt.shape[1]))))
        return {
            "change": np.zeros((1, 3, height, width), np.float32),
            "residual": np.zeros((1, 1, height, width), np.float32),
            "degradation": doubt[None, None, : height // 4, : width // 4].astype(np.float32),
            "context_8": np.zeros((1, 8, height // 8, width // 8), np.float32),
            "context_16": np.zeros((1, 8, height // 16, width // 16), np.float32),
            "context_32": np.zeros((1, 8, height // 32, width // 32), np.float32),
        }


class Repainter:
    """Says something else than the estimate: its own pattern, a constant, and colour."""

    runtime = "numpy"

    def __init__(self, card: Card = REFINER, constant: float = 0.0, pattern: float = 0.0, colour: float = 0.0) -> None:
        self.card, self.values, self.shapes = card, (constant, pattern, colour), []

    def __call__(self, inputs):
        constant, pattern, colour = self.values
        gain = inputs["gain"]
        self.shapes.append({k: v.shape for k, v in inputs.items()})
        fine = np.sin(300 * gain.mean(axis=1, keepdims=True))  # follows the picture, so that every square says the same
        tint = np.array([colour, 0, -colour], np.float32)[None, :, None, None]
        return {"refined": gain + constant + pattern * fine + tint}


@pytest.fixture(scope="module")
def aligned():
    bracket = small_scene(height=352, width=512).bracket
    alignments = align(bracket)
    return bracket, alignments, merge(bracket, alignments).radiance


def doubt(columns: slice = slice(0)) -> np.ndarray:
    """Of a picture of 352 x 512: 1 in some columns of the mask, 0 elsewhere."""
    mask = np.zeros((88, 128), np.float32)
    mask[:, columns] = 1
    return mask


def estimate(aligned, mask, refiner, strength=1.0, **more):
    return Estimator(Guide(mask), refinement=Refinement(refiner, strength), **more)(*aligned)


def test_nothing_is_refined_where_nothing_is_doubtful(aligned):
    refiner = Repainter(constant=0.3, pattern=0.3)
    plain = Estimator(Guide(doubt()))(*aligned)
    assert np.array_equal(estimate(aligned, doubt(), refiner).radiance, plain.radiance)
    assert np.array_equal(estimate(aligned, doubt(slice(None)), refiner, 0.0).radiance, plain.radiance)
    assert not refiner.shapes


def test_only_doubtful_places_change_and_only_their_squares_are_computed(aligned):
    refiner = Repainter(pattern=0.2)
    plain = Estimator(Guide(doubt()))(*aligned)
    refined = estimate(aligned, doubt(slice(100, None)), refiner)  # columns from 400 on: the third square alone
    changed = np.abs(refined.radiance - plain.radiance).max(axis=-1) > 1e-6
    assert changed[:, 410:].mean() > 0.5
    assert not changed[:, :390].any()
    assert len(refiner.shapes) == -(-352 // CORE_PX)
    assert {s["gain"] for s in refiner.shapes} == {(1, 3, CORE_PX + 64, CORE_PX + 64)}  # one size, whatever is left of the picture
    assert refiner.shapes[0]["context_32"][2] * 32 == refiner.shapes[0]["gain"][2]


@pytest.mark.parametrize("other", [{"constant": 0.3}, {"colour": 0.3}])
def test_brightness_and_colour_stay_as_estimated(aligned, other):
    everywhere = doubt(slice(None))
    plain = Estimator(Guide(everywhere))(*aligned)
    refined = estimate(aligned, everywhere, Repainter(**other))
    np.testing.assert_allclose(refined.radiance, plain.radiance, rtol=2e-3, atol=1e-5)


def test_strength_is_a_share(aligned):
    everywhere, refiner = doubt(slice(None)), Repainter(pattern=0.05)
    plain = Estimator(Guide(everywhere))(*aligned).radiance
    half, whole = (np.log2(estimate(aligned, everywhere, refiner, s).radiance + 1e-3) - np.log2(plain + 1e-3) for s in (0.5, 1.0))
    moved = np.abs(whole) > 0.05
    assert moved.mean() > 0.02
    assert np.median(half[moved] / whole[moved]) == pytest.approx(0.5, abs=0.05)


def test_tiles_leave_no_seam(aligned):
    everywhere, refiner = doubt(slice(None)), Repainter(pattern=0.1)
    whole = estimate(aligned, everywhere, refiner).radiance
    # The fake guide's mask is 1 wherever a tile lies, as the whole picture's is.
    tiled = Estimator(Guide(np.ones((200, 200), np.float32)), (256, 256), refinement=Refinement(refiner))(*aligned).radiance
    np.testing.assert_allclose(tiled, whole, atol=1e-3)


@pytest.mark.parametrize("shape", [(352, 512), (339, 501), (200, 517)])
def test_the_refiner_gets_the_whole_picture_however_it_is_tiled(shape):
    """Gain, short frame, features and doubt of every square, and none of a tile: of any size, edges repeated up to the stride."""
    bracket = small_scene(height=shape[0], width=shape[1]).bracket
    alignments = align(bracket)
    merged = merge(bracket, alignments).radiance

    class Watching(Guide):
        """Its features follow from the picture."""

        def __call__(self, inputs):
            said, seen = super().__call__(inputs), inputs["merged"]
            said["change"] = np.float32(0.1) * seen
            said["degradation"] = np.clip(_cells(seen, 4).mean(axis=1, keepdims=True) * 4, 0, 1)
            return said | {f"context_{fold}": _cells(seen, fold) for fold in (8, 16, 32)}

    class Looking(Repainter):
        def __call__(self, inputs):
            self.seen.append(inputs)
            return super().__call__(inputs)

    found, made = [], []
    for tile in (None, (160, 160)):
        refiner = Looking(pattern=0.1)
        refiner.seen = []
        made.append(Estimator(Watching(doubt()), tile, refinement=Refinement(refiner))(bracket, alignments, merged))
        plain = Estimator(Watching(doubt()), tile)(bracket, alignments, merged)
        assert np.array_equal(plain.degradation, made[-1].degradation)
        assert (plain.radiance != made[-1].radiance).any()
        untouched = (made[-1].radiance == plain.radiance).all(axis=-1) & (made[-1].invented == plain.invented)
        assert untouched[plain.degradation < 120].all()
        found.append(refiner.seen)
    assert np.array_equal(made[0].radiance, made[1].radiance)
    assert len(found[0]) == len(found[1]) > 1
    for whole, tiled in zip(*found, strict=True):
        for name, values in whole.items():
            np.testing.assert_array_equal(values, tiled[name], err_msg=name)
        # What the refiner gets of one place belongs together.
        gain, context = whole["gain"], whole["context_32"]
        assert gain.shape[2:] == tuple(32 * s for s in context.shape[2:])
        assert np.corrcoef(_cells(gain, 32).ravel(), context.ravel())[0, 1] > 0.7


def _cells(picture, fold):
    """(1, C, H, W) to means of cells."""
    batch, channels, height, width = picture.shape
    return picture.reshape(batch, channels, height // fold, fold, width // fold, fold).mean(axis=(3, 5))


def test_all_that_was_refined_is_invented_at_a_smaller_size_too(aligned):
    """The network sees a quarter of the pixels; what it says is enlarged, with whatever was added."""
    edges = doubt()
    edges[20:30, 20:30] = 1  # a mask with hard edges
    for shrink in (2, 3):
        plain = Estimator(Guide(edges), shrink=shrink)(*aligned)
        refined = Estimator(Guide(edges), shrink=shrink, refinement=Refinement(Repainter(pattern=0.3)))(*aligned)
        moved = (plain.radiance != refined.radiance).any(axis=-1)
        assert moved.any()
        assert refined.invented[moved].all()


def test_progress_rises_while_something_is_refined(aligned):
    told = []
    everywhere = Estimator(Guide(doubt(slice(None))), refinement=Refinement(Repainter()))
    everywhere(*aligned, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert sum(0.7 < fraction < 1 for fraction in told) > 2


def test_a_context_that_half_precision_cannot_hold_is_the_networks_fault(aligned):
    class Loud(Guide):
        def __call__(self, inputs):
            said = super().__call__(inputs)
            return said | {"context_16": said["context_16"] + self.value}

    for value in (1e6, np.inf, np.nan):
        guide = Loud(doubt(slice(None)))
        guide.value = np.float32(value)
        with pytest.raises(InputError, match="context that are not finite, or enormous"):
            Estimator(guide, refinement=Refinement(Repainter()))(*aligned)


def test_both_networks_rest_when_they_are_done(aligned):
    """Also when something went wrong; where memory does not suffice there is one line."""
    said = []

    class Resting(Guide):
        def rest(self):
            said.append("guide")

    class Tired(Repainter):
        def __call__(self, inputs):
            said.append("refined")
            return super().__call__(inputs)

        def rest(self):
            said.append("refiner")

    class Forgetful(Repainter):
        def __call__(self, inputs):
            raise MemoryError

    Estimator(Resting(doubt(slice(20, 30))), refinement=Refinement(Tired()))(*aligned)
    assert said[0] == said[-1] == "guide"
    assert said[-2] == "refiner"
    assert set(said[1:-2]) == {"refined"}
    said.clear()

    class Broken(Resting):
        def __call__(self, inputs):
            raise MemoryError

    with pytest.raises(InputError, match="give a smaller --tile, or --refine 0"):
        Estimator(Broken(doubt()), refinement=Refinement(Tired()))(*aligned)
    assert said == ["guide"]
    with pytest.raises(InputError, match="not enough memory for the refiner: give --refine 0"):
        estimate(aligned, doubt(slice(None)), Forgetful())


def test_what_is_added_is_inferred_and_stays_within_the_measured_interval(aligned, monkeypatch):
    monkeypatch.setattr("gmodiff.stillness.still", lambda merged: np.zeros_like(merged.moved))  # as if things moved everywhere
    bracket: Bracket = aligned[0]
    made = reconstruct_radiance(bracket, Estimator(Guide(doubt(slice(None))), refinement=Refinement(Repainter(pattern=0.5))))
    plain = reconstruct_radiance(bracket, Estimator(Guide(doubt(slice(None)))))
    new = (made.provenance == INFERRED) & (plain.provenance != INFERRED)
    assert new.any()
    assert np.array_equal(made.provenance == REFERENCE, plain.provenance == REFERENCE)
    slightly = reconstruct_radiance(bracket, Estimator(Guide(doubt(slice(None))), refinement=Refinement(Repainter(pattern=0.001))))
    assert np.array_equal(slightly.provenance == INFERRED, slightly.provenance != REFERENCE)  # however little it adds
    assert (plain.provenance == ALIGNED).any()
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    sure = reference.encoded.max(axis=-1) < 0.9 * 255
    for c in range(3):
        codes = reference.encoded[..., c]
        assert (made.radiance[..., c] >= low[codes, c] - 1e-6)[sure].all()
        assert (made.radiance[..., c] <= high[codes, c] + 1e-6)[sure].all()


def test_what_does_not_fit_is_refused(aligned):
    with pytest.raises(InputError, match="no refiner but a regressor"):
        Refinement(Guide(doubt()))
    with pytest.raises(InputError, match=r"refine 1\.5"):
        Refinement(Repainter(), 1.5)
    other = replace(REFINER, facts={"threshold": 0.5, "guide": "0" * 16})
    with pytest.raises(InputError, match="beside other weights"):
        Estimator(Guide(doubt()), refinement=Refinement(Repainter(other)))
    with pytest.raises(InputError, match="works beside a regressor"):
        Estimator(Repainter())

    class Silent(Guide):
        def __call__(self, inputs):
            return {k: v for k, v in super().__call__(inputs).items() if "context" not in k}

    with pytest.raises(InputError, match="says nothing of context_8"):
        Estimator(Silent(doubt(slice(None))), refinement=Refinement(Repainter()))(*aligned)
    with pytest.raises(InputError, match="not finite"):
        estimate(aligned, doubt(slice(None)), Repainter(pattern=float("nan")))


def test_names_of_the_context_are_those_of_the_exported_regressor():
    from gmodiff.model.on_arrays import RegressorOnArrays

    assert RegressorOnArrays.outputs[3:] == CONTEXT

"""Noise where the reference measured: reduced within the leeway, alike whatever the tiles, and left alone where there is little."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gmodiff
from cards import write_set
from gmodiff import noise_reduction
from gmodiff.cli import command
from gmodiff.errors import FileFormatError, InputError
from gmodiff.estimate import Estimate
from gmodiff.model.noise_reducer import (
    NOISE_HALO_PX,
    NoiseReducer,
    NoiseShape,
    read_noise_reducer,
    write_noise_reducer,
)
from gmodiff.model.regressor import STRIDE
from gmodiff.model_card import Card
from gmodiff.moving_scene import Motion
from gmodiff.networks import load_network
from gmodiff.noise_reduction import NoiseReduction
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.provenance import HELD_SIGMAS, SHARE_SCALE, constrain
from gmodiff.radiometry import CLIPPED_ENCODED, TAPER_ENCODED, CameraResponse, NoiseModel, deviation_of_codes
from gmodiff.runtime import load_model
from gmodiff.simulate import Camera, simulate
from gmodiff.train.losses import noise_loss
from synthetic import photos, scene

SHIPPED = Path(gmodiff.__file__).parent / "weights"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network():
    """Random weights that answer as strongly as trained ones."""
    torch.manual_seed(3)
    network = NoiseReducer(NoiseShape()).eval()
    with torch.no_grad():
        network.fold_out.weight.normal_(std=0.3)
    return network


def given(height: int, width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    held, merged, seen = (torch.rand(1, 3, height, width, generator=dice) for _ in range(3))
    return {"held": held, "merged": merged, "seen": seen, "sigma": 0.01 + 0.02 * torch.rand(1, 3, height, width, generator=dice)}


def noisy(iso: float, height: int = 160, width: int = 224):
    """A still bracket at an ISO, and its true radiance."""
    rng = np.random.default_rng(4)
    smooth = np.kron(rng.uniform(0.02, 0.6, (height // 32, width // 32, 3)), np.ones((32, 32, 1)))
    made = simulate(np.asarray(smooth, np.float32), [0.25, 1.0, 4.0], Camera(iso=iso), Motion(), seed=5, reference=1)
    return made.bracket, made.truth


def turns(height: int, width: int) -> np.ndarray:
    """(H, W), 1 and -1 in turn."""
    return (-1.0) ** np.add.outer(np.arange(height), np.arange(width))


class Says:
    """Answers a value and its negative in turn, from pixel to pixel: what noise looks like, without a mean."""

    runtime = "numpy"

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, []
        self.card = Card("fake", "", {}, 9, STRIDE, NOISE_HALO_PX, 1.5)

    def __call__(self, inputs):
        self.asked.append({k: v.shape for k, v in inputs.items()})
        return {"share": (self.value * turns(*inputs["merged"].shape[2:]))[None, None].repeat(3, axis=1).astype(np.float32)}


# ---- the network ----


def test_untrained_it_changes_nothing():
    torch.manual_seed(0)
    with torch.no_grad():
        assert (NoiseReducer()(**given(64, 96)) == 0).all()


def test_shares_stay_between_the_bounds_whatever_comes_in(network):
    odd = given(32, 64)
    odd["held"][0, :, :8] = 1e6
    odd["merged"][0, :, 8:16] = -3
    odd["seen"][0, :, :, :8] = 0
    odd["sigma"][0, :, :, 8:16] = 1e-9
    with torch.no_grad():
        share = network(**odd)
    assert bool(share.isfinite().all())
    assert share.abs().max() <= 1


def test_what_is_farther_than_the_halo_does_not_matter(network):
    one = given(64, 4 * NOISE_HALO_PX)
    other = {k: v.clone() for k, v in one.items()}
    for v in other.values():
        v[..., 2 * NOISE_HALO_PX :] = 0.5
    with torch.no_grad():
        apart = (network(**one) - network(**other)).abs()
    assert apart[..., :NOISE_HALO_PX].max() == 0
    assert apart[..., 2 * NOISE_HALO_PX :].max() > 0.1


def test_budget():
    """Fewer than 60 000 numbers, and of each pixel less than 4500 multiplications: it works at full size."""
    network = NoiseReducer()
    assert sum(p.numel() for p in network.parameters()) < 60_000
    products = 0

    def count(module, _, output):
        nonlocal products
        products += module.weight[0].numel() * output[0].numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(**given(64, 64))
    assert products / 64**2 < 4500


def test_weights_survive_their_file_and_others_are_refused(network, tmp_path):
    write_noise_reducer(network, tmp_path / "w.safetensors", {"a": 1})
    again, facts = read_noise_reducer(tmp_path / "w.safetensors")
    assert facts == {"a": 1}
    with torch.no_grad():
        assert torch.equal(again(**given(32, 32)), network(**given(32, 32)))
    with pytest.raises(FileFormatError, match=r"weights of a regressor .* expected weights of a noise"):
        read_noise_reducer(SHIPPED / "compact.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="not a weights file"):
        read_noise_reducer(tmp_path / "cut.safetensors")


def test_the_loss_is_least_where_the_share_is_right():
    dice = torch.Generator().manual_seed(1)
    truth = torch.rand(2, 3, 32, 32, generator=dice) * 0.5 + 0.1
    leeway = torch.full_like(truth, 0.01)
    wanted = torch.rand(2, 3, 32, 32, generator=dice) * 1.6 - 0.8
    everywhere = torch.ones(2, 1, 32, 32)

    def loss(share, measured=everywhere):
        held = truth - leeway * wanted
        return float(noise_loss(share, held, held, leeway, truth, measured)[0])

    assert loss(wanted) < 1e-5
    assert loss(0 * wanted) > loss(0.5 * wanted) > loss(wanted)
    assert loss(0 * wanted, 0 * everywhere) == loss(wanted, 0 * everywhere)


# ---- in the pipeline ----


def test_shares_move_what_was_measured_and_nothing_that_clips():
    bracket = photos(scene())
    frame = bracket.frames[bracket.reference]
    own = bracket.response.linearise(frame.encoded)
    deviation = deviation_of_codes(bracket.response, frame.noise, frame.encoded.dtype)
    leeway = HELD_SIGMAS * np.stack([deviation[frame.encoded[..., c], c] for c in range(3)], axis=-1)
    measured, clips = (frame.encoded < TAPER_ENCODED * 255).all(axis=2), (frame.encoded == 255).all(axis=2)
    assert measured.any()
    assert clips.any()
    for share, beside, wanted in ((-1, 0, -1), (0.5, 0, 0.5), (0.5, 0.25, 0.75), (1, 0.25, 1), (-0.5, 1, 0.5)):
        held = np.where(clips[..., None], 7, own + beside * leeway).astype(np.float32)
        shares = np.full(own.shape, round(share * SHARE_SCALE), np.int8)
        found = constrain(held, frame.encoded, bracket.response, frame.noise, merged=own, shares=shares)
        np.testing.assert_allclose(found[measured], np.maximum(own + wanted * leeway, 0)[measured], rtol=1e-4, atol=3e-5)
        assert (found[clips] == 7).all()


@pytest.mark.parametrize("times", [0.8, 1.5, 3])
def test_no_share_moves_nothing_however_near_to_clipping(times):
    """A ramp through the taper, in which an estimate lies lawfully beyond the leeway."""
    frame = np.repeat(np.arange(200, 256, dtype=np.uint8)[None, :, None], 3, axis=2)
    response = CameraResponse.named("srgb")
    arguments = frame, response, NoiseModel.of_photo(3200, 8, lossy=True)
    own = response.linearise(frame)
    assert ((frame > TAPER_ENCODED * 255) & (frame < CLIPPED_ENCODED * 255)).sum() > 30
    once = constrain(own * np.float32(times), *arguments, merged=own)
    assert not np.allclose(once, own, rtol=0.1)
    again = constrain(once, *arguments, merged=own, shares=np.zeros(own.shape, np.int8))
    np.testing.assert_allclose(again, once, rtol=1e-6)


def test_tiles_do_not_show(network, monkeypatch):
    from gmodiff.model.on_arrays import NoiseReducerOnArrays

    arrays = NoiseReducerOnArrays(network)

    class Runs(Says):
        def __call__(self, inputs):
            super().__call__(inputs)
            with torch.no_grad():
                return {k: v.numpy() for k, v in arrays.by_name({k: torch.from_numpy(v) for k, v in inputs.items()}).items()}

    bracket, truth = noisy(3200)
    whole = NoiseReduction(Runs(0))(bracket, truth, truth)
    monkeypatch.setattr(noise_reduction, "TILE_AREA_PX", 96 * 128)
    model = Runs(0)
    tiled = NoiseReduction(model)(bracket, truth, truth)
    assert len(model.asked) > 3
    assert np.abs(whole).max() > 60
    assert np.abs(whole.astype(int) - tiled).max() <= 1  # the last bit of convolutions of other sizes


def test_pictures_of_any_size_pass():
    for height, width in ((37, 51), (2, 3), (33, 200)):
        bracket = photos(scene(height, width))
        loud = tuple(replace(f, noise=NoiseModel.of_photo(6400, 8, lossy=True)) for f in bracket.frames)
        merged = np.zeros((height, width, 3), np.float32)
        shares = NoiseReduction(Says(-0.5))(replace(bracket, frames=loud), merged, merged)
        assert shares.shape == (height, width, 3)
        if min(height, width) > 30:  # else its mean is hardly one
            np.testing.assert_allclose(shares[..., 0], -0.5 * SHARE_SCALE * turns(height, width), atol=2)


def test_a_change_of_light_is_not_taken():
    """Wherever the answer has a mean it is no noise: the return of a ghost, or a tint."""
    bracket, truth = noisy(3200)

    class Darker(Says):
        def __call__(self, inputs):
            return {k: 0.3 * v - 0.6 for k, v in super().__call__(inputs).items()}

    shares = NoiseReduction(Darker(1))(bracket, truth, truth)
    np.testing.assert_allclose(shares[..., 1], 0.3 * SHARE_SCALE * turns(*truth.shape[:2]), atol=2)


@pytest.mark.parametrize(("iso", "asked"), [(100, False), (1000, False), (1250, True)])
def test_photos_with_little_noise_are_left_alone(iso, asked):
    bracket, truth = noisy(iso)
    model = Says(1)
    shares = NoiseReduction(model)(bracket, truth, truth)
    assert bool(model.asked) == asked
    assert (shares is not None) == asked


def test_broken_weights_and_little_memory_are_one_line():
    bracket, truth = noisy(1600)
    with pytest.raises(InputError, match="not finite: its weights are broken"):
        NoiseReduction(Says(float("nan")))(bracket, truth, truth)

    class Full(Says):
        def __call__(self, inputs):
            raise MemoryError

    with pytest.raises(InputError, match="not enough memory to reduce noise in tiles of"):
        NoiseReduction(Full(0))(bracket, truth, truth)


@pytest.mark.parametrize(("iso", "moves"), [(100, False), (1600, True)])
def test_the_pipeline_moves_noisy_estimates_within_the_leeway(iso, moves):
    bracket, _ = noisy(iso)
    stands, raised = (
        reconstruct_radiance(bracket, lambda *given, progress=None, r=reducer: Estimate(np.array(given[2]), noise_reducer=r), align=False)
        for reducer in (None, NoiseReduction(Says(1)))
    )
    assert (stands.noise_reduced, raised.noise_reduced) == (False, moves)
    frame = bracket.frames[bracket.reference]
    deviation = deviation_of_codes(bracket.response, frame.noise, frame.encoded.dtype)
    leeway = HELD_SIGMAS * np.stack([deviation[frame.encoded[..., c], c] for c in range(3)], axis=-1)
    rise = (raised.radiance - stands.radiance) / leeway
    assert np.abs(rise).max() < 1 + 1e-3
    wanted = moves * turns(*rise.shape[:2])[..., None]
    assert np.isclose(rise, wanted, atol=2e-2).mean() > 0.9  # the rest ends at its radiance interval


# ---- as it ships ----


@pytest.fixture(scope="module")
def compact():
    return load_model("compact")


def test_noise_falls_and_edges_stay(compact):
    """At ISO 3200 a still scene has a third less noise in the flat, and is no worse at edges."""
    bracket, truth = noisy(3200)
    quiet, plain = (reconstruct_radiance(bracket, m, align=False).radiance for m in (compact, None))
    rows, columns = np.indices(truth.shape[:2]) % 32
    flat = (np.abs(rows - 16) < 8) & (np.abs(columns - 16) < 8)
    assert (quiet - truth)[flat].std() < 0.7 * (plain - truth)[flat].std()
    assert (quiet - truth)[~flat].std() < (plain - truth)[~flat].std()  # most of what is wrong there is the lens's blur


@pytest.mark.parametrize(("iso", "options", "reduced"), [(3200, (), True), (3200, ("--keep-noise",), False), (100, (), False)])
def test_the_command_says_whether_noise_was_reduced(tmp_path, iso, options, reduced):
    paths = write_set(tmp_path, 1, iso=iso)
    ran = CliRunner().invoke(command, ["merge", *map(str, paths), "-o", str(tmp_path / "a.jpg"), "--json", *options])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["model"]["noise_reduced"] is reduced


def test_a_batch_makes_noise_anew_when_it_is_to_be_kept(tmp_path):
    write_set(tmp_path / "card", 1, iso=3200)
    asked = ["batch", str(tmp_path / "card"), "-o", str(tmp_path / "out"), "--workers", "1", "--json"]
    for options, made in (((), 1), ((), 0), (("--keep-noise",), 1)):
        ran = CliRunner().invoke(command, [*asked, *options])
        assert ran.exit_code == 0, ran.output
        assert len(json.loads(ran.stdout)["made"]) == made
    results = [json.loads(line).get("result") for line in (tmp_path / "out" / "batch.jsonl").read_text().splitlines()]
    assert [r["noise_reduced"] for r in results if r] == [True, False]


def test_runtimes_agree(compact):
    bracket, truth = noisy(1600)
    found = [NoiseReduction(load_model("compact", runtime=r).noise_reducer)(bracket, truth, truth) for r in ("onnxruntime", "torch")]
    found.append(NoiseReduction(compact.noise_reducer)(bracket, truth, truth))
    assert np.abs(found[0]).max() > 30
    assert np.abs(found[0].astype(int) - found[1]).max() <= 2
    assert np.abs(found[0].astype(int) - found[2]).max() <= 2


def test_other_weights_than_the_card_names_are_refused(tmp_path):
    for path in SHIPPED.glob("compact*"):
        shutil.copy(path, tmp_path)
    card = json.loads((tmp_path / "compact.json").read_text())
    assert {"compact-noise.onnx", "compact-noise.safetensors"} <= set(card["sha256"])
    graph = tmp_path / "compact-noise.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    with pytest.raises(FileFormatError, match=r"compact-noise\.onnx: not the weights"):
        load_network(str(tmp_path / "compact.json"))
    graph.unlink()
    with pytest.raises(InputError, match=r"compact-noise\.onnx: cannot be read"):
        load_network(str(tmp_path / "compact.json"))
    load_network(str(tmp_path / "compact.json"), keep_noise=True)
    del card["noise"]
    (tmp_path / "compact.json").write_text(json.dumps(card))
    assert load_model(str(tmp_path / "compact.json")).noise_reducer is None
    for wrong in ({"stride": 32}, {"stride": 0, "halo_px": 0}, {"stride": 32, "halo_px": 33}, {"stride": 32, "halo_px": -32}):
        (tmp_path / "compact.json").write_text(json.dumps(card | {"noise": wrong}))
        with pytest.raises(FileFormatError, match="not a model card"):
            load_model(str(tmp_path / "compact.json"))

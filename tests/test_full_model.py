"""The full-size model in the pipeline: which frames it gets, what becomes of its gain map, and the commands around it."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gmodiff
from command_line import run
from gmodiff import full_model
from gmodiff.align import Alignment, align, warp_rows
from gmodiff.convert import convert
from gmodiff.errors import FileFormatError, GMODiffError, InputError, MissingDependencyError, OutputError
from gmodiff.estimate import estimator
from gmodiff.full_estimate import FullEstimator, short_middle_long
from gmodiff.full_model import FIXED_BYTES, FullModel, load_full_model
from gmodiff.gainmap import mu_gain, radiance_from_mu_gain
from gmodiff.merge import merge
from gmodiff.model.dareg import DaRegShape
from gmodiff.model.sd21 import Refined, Sd21
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.radiometry import CameraResponse
from gmodiff.runtime import Card, load_model
from live_bytes import LiveBytes
from sd21_standin import SHAPE, Reference, assert_same
from synthetic import photos, scene

CARD = Card("fake", "", {}, 3, 32, 32, 1.0)
COST = Path(__file__).parents[1] / "benchmarks" / "full_model_cost.py"
GAMMA = CameraResponse.named("gamma2.2")
STILL = [Alignment()] * 3

pytestmark = pytest.mark.usefixtures("small_sd21")


@pytest.fixture
def model(backbone, weights) -> FullModel:
    return load_full_model(backbone=str(backbone), weights=str(weights), device="cpu")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i, frame in enumerate(photos(scene(96, 128), noise=0.004).frames):
        path = folder / f"IMG_{i}.png"
        Image.fromarray(frame.encoded).save(path)
        paths.append(str(path))
    return [*paths, "--ev", "-2,0,2"]


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


# ---- memory ----


def published(dtype: torch.dtype, *, offload: bool) -> FullModel:
    """The published sizes, without content."""
    spec = importlib.util.spec_from_file_location("full_model_cost", COST)
    sizes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sizes)
    with torch.device("meta"):
        system = Sd21(sizes.UNET, sizes.VAE, sizes.SCHEDULER, DaRegShape())
    system = system.to(dtype).eval()
    system.device, system.offload = torch.device("meta"), offload
    return FullModel(CARD, system, exact=False)


def test_free_memory_is_a_containers_or_the_gpus_of_a_mac(monkeypatch):
    monkeypatch.setattr("gmodiff.machine.free_bytes", lambda: 12345)
    assert full_model.free_bytes(torch.device("cpu")) == 12345
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8_000_000_000, raising=False)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3_000_000_000)
    assert full_model.free_bytes(torch.device("mps")) == 5e9
    monkeypatch.delattr(torch.mps, "recommended_max_memory")
    assert full_model.free_bytes(torch.device("mps")) is None


def test_advice_names_offload_main_memory_and_no_tile_that_just_failed(monkeypatch):
    model = published(torch.float16, offload=False)
    model.system.device = torch.device("cuda")
    free = {"cuda": 1e10, "cpu": 1e12}
    monkeypatch.setattr(full_model, "free_bytes", lambda device: free[device.type])
    assert "; --tile 768 fits" in model._too_little(3000, 4000, None, free["cuda"])  # not 1024, the default, which was in force
    assert "; --offload on --tile 768 fits" in model._too_little(3000, 4000, None, 2.0e9)
    model.system.offload = True
    needed = model.working_bytes(4000, 6000, visiting=True)
    free["cpu"] = 1e9
    line = model._too_little(4000, 6000, None, 1.1 * needed)
    assert f"with {model.waiting_bytes(4000, 6000) / 1e9:.1f} GB free in main memory it would fit" in line


@pytest.mark.parametrize(("offload", "advice"), [("off", "; --offload auto keeps parts of them in main memory"), ("auto", "; close other")])
def test_weights_that_do_not_fit_the_gpu_are_named_in_its_precision(backbone, weights, monkeypatch, offload, advice):
    def place(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(full_model, "_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(full_model, "free_bytes", lambda device: 1e12)
    monkeypatch.setattr(Sd21, "place", place)
    with pytest.raises(InputError, match=r"on cuda to load model sd21: its weights take 2\.1 GB in float16" + advice):
        load_model("sd21", backbone=str(backbone), weights=str(weights), offload=offload)


def test_too_little_memory_says_what_would_fit(model, monkeypatch):
    needed = model.working_bytes(1500, 1300)
    small = model.working_bytes(1500, 1300, 768)
    assert small < needed
    assert model.working_bytes(4000, 3000) > model.working_bytes(2000, 1500)
    monkeypatch.setattr(full_model, "free_bytes", lambda device: small * 1.1)
    with pytest.raises(InputError, match=r"takes about .* GB for 1300x1500 pixels, and .* GB are free; --tile 768 fits"):
        model._check_memory(1500, 1300, None)
    model._check_memory(1500, 1300, 768)
    monkeypatch.setattr(full_model, "free_bytes", lambda device: 5e9)
    with pytest.raises(InputError, match=r"photos of up to about 5\.6 megapixels fit with --tile 512"):
        model._check_memory(4000, 3000, None)
    model._check_memory(2750, 2000, 512)
    with pytest.raises(InputError, match="not enough memory"):
        model._check_memory(3000, 2000, 512)
    monkeypatch.setattr(full_model, "free_bytes", lambda device: 1e8)
    with pytest.raises(InputError, match="close other programs, or use --model compact"):
        model._check_memory(400, 300, None)
    monkeypatch.setattr(full_model, "free_bytes", lambda device: None)
    model._check_memory(40000, 30000, None)  # nobody knows


def test_so_many_tiles_of_the_unet_at_once_as_there_is_room_for(model, monkeypatch):
    one, two = (model.working_bytes(3000, 4000, 512, n) for n in (1, 2))
    assert model.working_bytes(1000, 1500, 512, 4) > 1.5 * model.working_bytes(1000, 1500, 512, 1)
    assert one == two  # the regressor takes more than either here
    assert model._unet_batch(3000, 4000, None) == 1  # on a processor
    monkeypatch.setattr(model.system, "device", torch.device("cuda"))
    for free, wanted in ((1e12, 4), (1.2 * model.working_bytes(1000, 1500, 512, 2), 2), (1e6, 1)):
        monkeypatch.setattr(full_model, "free_bytes", lambda device, free=free: free)
        assert model._unet_batch(1000, 1500, 512) == wanted


@pytest.mark.parametrize(
    ("dtype", "home", "height", "width"),
    [
        (torch.float32, "meta", 1504, 2016),
        (torch.float16, "cpu", 1504, 2016),
        (torch.float32, "meta", 32, 20000),
        (torch.float32, "cpu", 64, 12000),
        (torch.float16, "cpu", 32, 16384),
        (torch.float32, "meta", 256, 256),
    ],
)
def test_the_regressor_takes_what_is_reckoned(dtype, home, height, width):
    """The published one, on a device without content. Reckoned is up to a third too much, never too little."""
    model = published(dtype, offload=False)
    regressor = model.system.dareg
    with torch.no_grad(), LiveBytes() as live:
        regressor(*(torch.empty(1, 6, height, width, dtype=dtype, device=home) for _ in range(3)))
    if home == "cpu":
        waiting = model.waiting_bytes(height, width)
        assert 0.75 * (waiting - FIXED_BYTES) < live.peak["cpu"] <= (waiting - FIXED_BYTES if height > 100 else waiting)
    reckoned = model.regressor_bytes(height, width, visiting=home == "cpu")
    assert 0.75 < live.peak["meta"] / reckoned <= 1


def test_twelve_megapixels_fit_six_gigabytes_and_what_does_not_fit_waits(model, monkeypatch):
    small_gpu = published(torch.float16, offload=True)
    assert small_gpu.working_bytes(3000, 4000) < 5.5e9
    assert small_gpu.working_bytes(4000, 6000, visiting=True) < 5.5e9 < small_gpu.working_bytes(4000, 6000)
    coming = small_gpu.working_bytes(64, 64) - small_gpu.working_bytes(64, 64, offload=False)
    assert 1.6e9 < coming < sum(p.numel() * 2 for p in small_gpu.system.unet.parameters())  # the UNet, which is more than a small picture
    model.system.place(torch.device("cpu"), torch.float16)
    on_device, visiting = (model.working_bytes(4000, 6000, visiting=v) for v in (False, True))
    assert visiting < 0.6 * on_device
    main = {"cpu": 1e12}
    monkeypatch.setattr(full_model, "free_bytes", lambda device: main["cpu"] if device.type == "cpu" else 1.1 * visiting)
    asked = []
    monkeypatch.setattr(model.system, "refine", lambda *a, **given: asked.append(given["visiting"]) or Refined(*[torch.zeros(1)] * 3))
    small = {"encoded": np.zeros((3, 3, 32, 32), np.float32), "stops": np.zeros(3, np.float32)}
    monkeypatch.setattr(model.system, "device", torch.device("cuda"))
    assert not model._check_memory(3000, 4000, None)
    assert model._check_memory(4000, 6000, None)
    main["cpu"] = 0.9 * model.waiting_bytes(4000, 6000)  # no room to wait in
    with pytest.raises(InputError, match="not enough memory on cuda"):
        model._check_memory(4000, 6000, None)
    for waits in (True, False):
        monkeypatch.setattr(model, "_check_memory", lambda *size, waits=waits: waits)
        model(small)
    assert asked == [True, False]
    monkeypatch.undo()
    between = (model.waiting_bytes(4000, 6000) + on_device) / 2
    monkeypatch.setattr(full_model, "free_bytes", lambda device: between)
    with pytest.raises(InputError, match="not enough memory on cpu"):  # a processor has no other memory to wait in
        model._check_memory(4000, 6000, None)


def test_parts_that_wait_come_in_turn_and_take_what_is_reckoned():
    """The published sizes on a device without content: no more than is reckoned, and never all weights at once."""
    model = published(torch.float16, offload=True)
    system = model.system.to_empty(device="cpu")
    height, width = 384, 512  # larger ones take quadratically more on this device, where attention is plain
    with LiveBytes() as live:
        found = system.refine(torch.rand(3, 3, height, width), torch.tensor([1.0, 4.0, 16.0]), vae_tile_px=512, visiting=True)
    assert [v.shape for v in found] == [(1, 3, height, width), (1, 3, height, width), (1, 1, height, width)]
    unet = sum(p.numel() * 2 for p in system.unet.parameters())
    reckoned = model.working_bytes(height, width, 512, visiting=True)
    assert unet < live.peak["meta"] <= reckoned < unet + 1.5e9
    assert not any(p.is_meta for p in system.parameters())


def test_the_context_and_kept_features_count(monkeypatch):
    whole = published(torch.float32, offload=False)
    monkeypatch.setattr(full_model, "VAE_BYTES", 0.0)
    monkeypatch.setattr(full_model, "REGRESSOR_BYTES", 0.0)
    monkeypatch.setattr(full_model, "UNET_BYTES", 1e6)
    seen_whole, tiled = (whole.working_bytes(1000, 1500, t) for t in (1500, 1024))
    assert seen_whole - tiled == pytest.approx(736 * 1.5e6)
    one, four = (whole.working_bytes(4000, 4000, 512, n) for n in (1, 4))
    assert four - one == pytest.approx(3 * (1e6 * 96**2 + 2 * 1280 * 4 * 4000 * 4000 / 1024))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")])
def test_memory_that_runs_out_is_one_line(model, monkeypatch, error):
    def refine(*args, **kwargs):
        raise error

    monkeypatch.setattr(model.system, "refine", refine)
    with pytest.raises(InputError, match="not enough memory on cpu") as said:
        model({"encoded": np.zeros((3, 3, 8, 8), np.float32), "stops": np.zeros(3, np.float32)})
    assert "\n" not in str(said.value)


def test_other_errors_stay_what_they_are(model, monkeypatch):
    def refine(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model.system, "refine", refine)
    with pytest.raises(RuntimeError, match="shapes"):
        model({"encoded": np.zeros((3, 3, 8, 8), np.float32), "stops": np.zeros(3, np.float32)})


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--offload", "on"], "--offload: of the full-size model"),
        (["--model", "none", "--offload", "off"], "--offload: of the network, and --model is none"),
        (["--model", "sd21", "--backbone", "x", "--weights", "y", "--device", "cpu", "--offload", "on"], "--offload on: device cpu"),
        (["--offload", "maybe"], "--offload"),
    ],
)
def test_offload_where_it_makes_no_sense_is_one_line(jpegs, tmp_path, capsys, options, said):
    code, _, told = run(["merge", *jpegs, *options, "-o", str(tmp_path / "a.jpg")], capsys)
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1


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


# ---- the commands ----


def test_merge_with_the_full_size_model(jpegs, backbone, weights, tmp_path, capsys):
    full = ["--model", "sd21", "--backbone", str(backbone), "--weights", str(weights), "--device", "cpu"]
    code, out, err = run(["merge", *jpegs, *full, "-o", str(tmp_path / "a.exr"), "--json"], capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["model"] == {"name": "sd21", "runtime": "torch on cpu, float32", "refine": 0.0, "noise_reduced": False}
    code, out, _ = run(["convert", *full[2:6], "-o", str(tmp_path / "c.safetensors"), "--fold-lora"], capsys)
    assert code == 0
    assert "with their backbone" in out
    code, out, err = run(["merge", *jpegs, "--model", str(tmp_path / "c.json"), "-o", str(tmp_path / "b.exr"), "--json"], capsys)
    assert (code, err) == (0, "")
    code, _, _ = run(["merge", *jpegs, "--model", "none", "-o", str(tmp_path / "none.exr"), "-q"], capsys)
    released, folded, none = (gmodiff.read(tmp_path / f"{name}.exr").radiance for name in ("a", "b", "none"))
    assert np.array_equal(released, folded)
    assert not np.array_equal(released, none)


def test_merge_says_that_it_loads_and_estimates(jpegs, backbone, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gmodiff.cli.time", SimpleNamespace(monotonic=itertools.count(0.0, 1.0).__next__))  # every stage takes a second
    full = ["--model", "sd21", "--backbone", str(backbone), "--weights", str(weights), "--device", "cpu"]
    code, _, err = run(["merge", *jpegs, *full, "-o", str(tmp_path / "a.exr")], capsys)
    assert code == 0
    stages = [line.split(":")[0] for line in err.splitlines()]
    assert stages[:2] == ["loading", "reading"]
    assert "estimating" in stages


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "sd21"], "--model sd21 needs --backbone PATH_OR_HUB_ID and --weights FOLDER"),
        (["--model", "none", "--backbone", "x"], "--backbone: of the network, and --model is none"),
        (["--model", "sd21", "--backbone", "nowhere", "--weights", "WEIGHTS"], "--backbone nowhere: no such folder"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "BACKBONE"], "dareg_mask.pth and gmodiff.pkl not there"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "WEIGHTS", "--tile", "100"], "tile 100: expected 512"),
        (["--model", "sd21", "--backbone", "BACKBONE", "--weights", "WEIGHTS", "--estimate-size", "half"], "sees every pixel"),
    ],
)
def test_what_cannot_be_run_is_one_line(jpegs, backbone, weights, tmp_path, capsys, options, said):
    places = {"BACKBONE": str(backbone), "WEIGHTS": str(weights)}
    code, _, err = run(["merge", *jpegs, "-o", str(tmp_path / "s.exr"), "-q", *(places.get(o, o) for o in options)], capsys)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_in_one_line(backbone, weights, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    for name in ("dareg_mask.pth", "gmodiff.pkl"):
        (tmp_path / "w" / name).write_bytes((weights / name).read_bytes()[:-300])
    places = ["--backbone", str(backbone), "--weights", str(tmp_path / "w")]
    code, _, err = run(["convert", *places, "-o", str(tmp_path / "o.safetensors")], capsys)
    assert code == 2
    assert "download it again" in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_models_says_where_it_is_to_be_had(capsys):
    assert "sd21: the paper's full-size system" in run(["models"], capsys)[1]


def test_from_the_library(backbone, weights):
    made = gmodiff.reconstruct(photos(scene()), gmodiff.load_model("sd21", backbone=str(backbone), weights=str(weights), device="cpu"))
    assert made.degradation is not None
    assert np.isfinite(made.radiance).all()
    with pytest.raises(GMODiffError):
        gmodiff.load_model("sd21")

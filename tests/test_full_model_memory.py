"""Memory of the full-size model: what is reckoned, what waits in main memory, and what is said where it runs out."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from gmodiff import full_model
from gmodiff.errors import InputError
from gmodiff.full_model import FIXED_BYTES, FullModel
from gmodiff.model.dareg import DaRegShape
from gmodiff.model.sd21 import Refined, Sd21
from gmodiff.model_card import Card
from gmodiff.runtime import load_model
from live_bytes import LiveBytes

CARD = Card("fake", "", {}, 3, 32, 32, 1.0)
COST = Path(__file__).parents[1] / "benchmarks" / "full_model_cost.py"

pytestmark = pytest.mark.usefixtures("small_sd21")


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

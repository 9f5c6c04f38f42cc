"""The full-size system in strips, tiles and parts that come and go: what that leaves of the numbers, and what memory it takes."""

import copy as copying
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from gmodiff.model import dareg as dareg_module
from gmodiff.model import sd21
from gmodiff.model.dareg import DaReg
from gmodiff.model.sd21 import Sd21, starts
from live_bytes import LiveBytes
from sd21_standin import EXPOSURES, SHAPE, WIDTH, frames

pytestmark = pytest.mark.usefixtures("small_sd21")

# ---- the regressor's strips ----


def test_strips_change_nothing(monkeypatch):
    torch.manual_seed(0)
    net = DaReg(SHAPE).eval()
    for block in net.modules():
        if isinstance(block, dareg_module.NAFBlock):
            torch.nn.init.normal_(block.beta)
            torch.nn.init.normal_(block.gamma)
    given = [torch.rand(1, 6, 160, 64) for _ in range(3)]
    with torch.no_grad():
        whole = net(*given)
        monkeypatch.setattr(dareg_module, "STRIP_PX", 16 * 64)
        for a, b in zip(whole, net(*given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with_gradient = net(*given)
    assert with_gradient.gain.requires_grad
    torch.testing.assert_close(with_gradient.gain, whole.gain, rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_picture_elsewhere_is_its_mean(monkeypatch):
    monkeypatch.setattr(dareg_module, "STRIP_PX", 16 * 24)
    picture = torch.rand(2, 5, 70, 24)
    wanted = picture.double().mean((2, 3), keepdim=True).float()
    torch.testing.assert_close(dareg_module._mean(picture, torch.device("cpu")), wanted, rtol=1e-6, atol=0)
    monkeypatch.undo()
    with LiveBytes() as live:
        dareg_module._mean(torch.empty(1, 512, 512, 1024), torch.device("meta"))
    assert live.peak["meta"] < 1.1 * 4 * dareg_module.STRIP_PX * dareg_module.STRIP_CHANNELS


@pytest.mark.parametrize("visiting", [False, True])
def test_pictures_in_main_memory_visit_the_device(system, monkeypatch, visiting):
    """On a device without content: nothing is computed from tensors on both, and only strips of the regressor's features are there."""
    monkeypatch.setattr(dareg_module, "STRIP_PX", 16 * 256)
    elsewhere = copying.deepcopy(system).to("meta")
    elsewhere.device = torch.device("meta")
    largest = 0

    def look(module, inputs):
        nonlocal largest
        assert inputs[0].is_meta
        largest = max(largest, inputs[0][0, 0].numel())

    for module in elsewhere.dareg.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_pre_hook(look)
    regressed, before = [], []
    elsewhere.dareg.register_forward_pre_hook(lambda *_: before.append(live._held["meta"]))
    elsewhere.dareg.register_forward_hook(lambda *_: regressed.append(live.peak["meta"]))
    with LiveBytes() as live:
        found = elsewhere.refine(torch.rand(3, 3, 512, 256), EXPOSURES, vae_tile_px=128, visiting=visiting)
    assert [v.shape for v in found] == [(1, 3, 512, 256), (1, 3, 512, 256), (1, 1, 512, 256)]
    assert not any(v.is_meta for v in found)
    assert largest <= (16 + 2 * 8) * 256  # strips and their halos, wherever the picture lies
    features = 4 * 2 * SHAPE.widths[0] * 512 * 256  # what is kept of the finest depth
    assert (regressed[0] > features) is not visiting
    if not visiting:
        assert before[0] < 90 * 512 * 256  # the short frame and three times 6 channels: nothing else of the frames, 36 bytes a pixel


# ---- tiles ----


@pytest.mark.parametrize(("size", "wanted"), [(96, [0]), (97, [0, 1]), (160, [0, 64]), (161, [0, 64, 65]), (224, [0, 64, 128]), (50, [0])])
def test_tiles_begin_where_the_release_puts_them(size, wanted):
    assert starts(size, 96, 32) == wanted


def test_the_unet_sees_tiles_weighed_by_a_gaussian(system, monkeypatch):
    """Against the sum written out, pixel by pixel."""
    monkeypatch.setattr(sd21, "UNET_TILE", 12)
    monkeypatch.setattr(sd21, "UNET_OVERLAP", 4)
    latents, context = torch.randn(1, 8, 18, 30), torch.randn(1, 6, WIDTH)

    def unet(x):
        return system.unet(x, torch.tensor([499]), encoder_hidden_states=context.expand(len(x), -1, -1)).sample

    total, weight = torch.zeros(1, 4, 18, 30), torch.zeros(18, 30)
    for top in (0, 6):
        for left in (0, 8, 16, 18):
            with torch.no_grad():
                found = unet(latents[..., top : top + 12, left : left + 12])
            for y in range(12):
                for x in range(12):
                    w = 2.718281828 ** (-((y - 6) ** 2 + (x - 5.5) ** 2) / 144 / 0.02)
                    total[..., top + y, left + x] += w * found[..., y, x]
                    weight[top + y, left + x] += w
    with torch.no_grad():
        for batch in (1, 3, 8):
            found = system._noise(latents, context, batch, lambda f: None)
            torch.testing.assert_close(found, total / weight, rtol=1e-3, atol=1e-4)
        whole = system._noise(latents[..., :12, :12], context, 1, lambda f: None)
        torch.testing.assert_close(whole, unet(latents[..., :12, :12]))


def test_vae_tiles_cover_the_picture_and_come_back_near(system, monkeypatch):
    """Tiles do not equal the whole, whose group norm sees all of the picture."""
    monkeypatch.setattr(sd21, "VAE_OVERLAP_PX", 64)
    given = frames(160, 256)
    told = []
    whole = system.refine(given, EXPOSURES).gain
    tiled = system.refine(given, EXPOSURES, vae_tile_px=128, progress=told.append).gain
    assert tiled.shape == whole.shape
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 12
    assert 0 < (tiled - whole).abs().mean() < 0.2


def test_vae_tiles_of_what_sees_no_further_are_the_whole(monkeypatch):
    monkeypatch.setattr(sd21, "VAE_OVERLAP_PX", 64)
    picture, latent = torch.rand(1, 3, 160, 256), torch.rand(1, 4, 20, 32)

    def encoder(x):
        return functional.avg_pool2d(x.mean(dim=1, keepdim=True), 8).expand(-1, 4, -1, -1), [x]

    def decoder(z, features, context):
        return functional.interpolate(z[:, :3], scale_factor=8) + features[0]

    local = SimpleNamespace(gain_encoder=encoder, gain_decoder=decoder, dtype=torch.float32, device=torch.device("cpu"))
    found, features = Sd21._encoded(local, encoder, picture, 128, lambda f: None)
    assert features is None
    torch.testing.assert_close(found, encoder(picture)[0])
    found = Sd21._decoded(local, latent, picture, None, None, 128, lambda f: None)
    torch.testing.assert_close(found, decoder(latent, [picture], None))


def test_tiles_that_disagree_are_blended_in_a_line():
    canvas = sd21._Canvas(1, 4, 100, torch.device("cpu"))
    for level, columns in ((0.0, slice(0, 60)), (1.0, slice(40, 100))):
        down = sd21._feathered(slice(0, 4), 4, 20, torch.device("cpu"))
        canvas.add(torch.full((1, 1, 4, 60), level), slice(0, 4), columns, down, sd21._feathered(columns, 100, 20, torch.device("cpu")))
    row = canvas.mean()[0, 0, 0]
    assert row[:40].abs().max() == 0
    assert (row[60:] == 1).all()
    assert row.diff().max() == pytest.approx(1 / 20, rel=1e-4)


def test_large_pictures_are_tiled_by_themselves(system, monkeypatch):
    monkeypatch.setattr(sd21, "VAE_OVERLAP_PX", 32)
    monkeypatch.setattr(sd21, "VAE_TILE_PX", 64)
    given = frames(64, 128)
    by_hand = system.refine(given, EXPOSURES, vae_tile_px=64).gain
    assert not torch.equal(system.refine(given, EXPOSURES).gain, by_hand)
    monkeypatch.setattr(sd21, "VAE_WHOLE_PX", 64 * 128 - 1)
    assert torch.equal(system.refine(given, EXPOSURES).gain, by_hand)


# ---- parts in turn ----


def test_parts_come_and_go_in_turn(system, monkeypatch):
    """With offload, each part is brought when it is needed and sent back before the next; the numbers stay."""
    given = frames(64, 64)
    wanted = system.refine(given, EXPOSURES).gain
    there, turns = set(), []
    for name, part in system.named_children():

        def to(where, name=name):
            (there.discard if where == "cpu" else there.add)(name)
            turns.append(set(there))

        monkeypatch.setattr(part, "to", to)
        part.register_forward_pre_hook(lambda module, inputs, name=name: used.append((name, name in there)))
    used = []
    monkeypatch.setattr(system, "offload", True)
    try:
        assert torch.equal(system.refine(given, EXPOSURES).gain, wanted)
    finally:
        for part in system.children():
            part._forward_pre_hooks.clear()
    assert [name for name, _ in used] == ["dareg", "context", "frame_encoder", "gain_encoder", "unet", "gain_decoder"]
    assert all(was_there for _, was_there in used)
    assert max(len(t) for t in turns) == 1
    assert turns[-1] == set()


def test_what_arrived_goes_back_when_memory_runs_out(system, monkeypatch):
    there = set()

    def fails(where):
        if where != "cpu":
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(system.gain_decoder, "to", lambda where: (there.discard if where == "cpu" else there.add)("decoder"))
    monkeypatch.setattr(system.gain_encoder, "to", fails)
    monkeypatch.setattr(system, "offload", True)
    with pytest.raises(torch.OutOfMemoryError), system._there(system.gain_decoder, system.gain_encoder):
        pytest.fail("not all of it is there")
    assert there == set()

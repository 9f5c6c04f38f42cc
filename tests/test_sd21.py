"""The full-size system, small: the numbers of the plainest computation, tiles, and files that are refused with a reason."""

import copy as copying
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.model import dareg as dareg_module
from gmodiff.model import sd21
from gmodiff.model.dareg import DaReg, DaRegShape, network_input
from gmodiff.model.released import LORA_ALPHA, low_rank, read_released, released_from
from gmodiff.model.sd21 import OneStep, Sd21, assemble, from_folded, skip_widths, starts
from gmodiff.model.sd21_backbone import open_backbone
from gmodiff.model.sd21_files import read_adapters, save_adapters
from live_bytes import LiveBytes
from sd21_standin import SCHEDULER, SHAPE, SKIPS, UNET, VAE, WIDTH, Reference, assert_same, write_backbone

COMPAT = Path(__file__).parents[2] / "shared" / "compat"
EXPOSURES = torch.tensor([1.0, 4.0, 16.0])

pytestmark = pytest.mark.usefixtures("small_sd21")


@pytest.fixture(scope="module")
def system(backbone, weights) -> Sd21:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmodiff.model.sd21_backbone.CONTEXT_WIDTH", WIDTH)
        return assemble(open_backbone(str(backbone)), read_released(weights), SHAPE)


@pytest.fixture(scope="module")
def reference(backbone, weights) -> Reference:
    return Reference(backbone, weights, SHAPE)


def frames(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some noise, 0..1."""
    noise = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))
    small = functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return (0.5 + 2 * (small - 0.5) + 0.1 * (noise - 0.5)).clamp(0, 1)


# ---- the numbers ----


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_the_gain_map_is_that_of_the_plain_computation(system, reference, size):
    given = frames(*size)
    refined = system.refine(given, EXPOSURES)
    wanted = reference(given, EXPOSURES)
    assert refined.gain.shape == (1, 3, *size)
    assert (refined.gain - wanted).abs().max() < 1e-4
    assert wanted.std() > 0.05  # not all clamped
    assert (refined.gain - refined.regressed).abs().max() > 0.05  # something was refined


@pytest.mark.parametrize("mistake", Reference.MISTAKES)
def test_each_mistake_would_be_seen(system, reference, mistake):
    given = frames(75, 50)
    assert (system.refine(given, EXPOSURES).gain - reference(given, EXPOSURES, mistake)).abs().max() > 1e-3


def test_stored_statistics_are_those_of_a_network_in_use(system, reference):
    given = frames(96, 96)
    system.context.stored_statistics = True
    try:
        assert (system.refine(given, EXPOSURES).gain - reference(given, EXPOSURES, "statistics")).abs().max() < 1e-4
    finally:
        system.context.stored_statistics = False


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed (it is not needed to run)")
def test_alpha_is_what_peft_has_by_default():
    import peft

    assert peft.LoraConfig(r=16).lora_alpha == LORA_ALPHA


def test_two_runs_give_the_same_bits(system):
    given = frames(64, 64)
    assert torch.equal(system.refine(given, EXPOSURES).gain, system.refine(given, EXPOSURES).gain)


def test_the_step_is_the_schedulers(system):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    wanted = torch.cumprod(1 - betas, 0)
    assert OneStep(SCHEDULER).alpha_bar == pytest.approx(float(wanted[499]), rel=1e-9)
    assert OneStep(SCHEDULER, 3).alpha_bar == pytest.approx(float(wanted[3]), rel=1e-9)
    x0, eps = torch.randn(4), torch.randn(4)
    abar = OneStep(SCHEDULER).alpha_bar
    torch.testing.assert_close(OneStep(SCHEDULER).x0(abar**0.5 * x0 + (1 - abar) ** 0.5 * eps, eps), x0)


@pytest.mark.parametrize("steps", [400, 2000, "many"])
def test_a_schedule_of_another_length_is_refused_in_a_converted_file_too(steps):
    configs = {"unet": UNET, "vae": VAE, "scheduler": SCHEDULER | {"num_train_timesteps": steps}}
    with pytest.raises(FileFormatError, match=rf"mine: .*num_train_timesteps is {steps}, expected 1000.*convert it again"):
        from_folded(configs, {}, "mine", SHAPE)


BROKEN = [
    ("vae", {"block_out_channels": [8, 12], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}),
    ("vae", {"up_block_types": ["UpDecoderBlock2D"] * 5}),
    ("vae", {"norm_num_groups": 0}),
    ("unet", {"norm_num_groups": 0}),
    ("unet", {"block_out_channels": [8, 16]}),
    ("scheduler", {"beta_start": []}),
]


@pytest.mark.parametrize(("part", "broken"), BROKEN)
def test_configurations_of_no_system_are_one_line(backbone, part, broken):
    opened = open_backbone(str(backbone))
    configs = {"unet": dict(UNET), "vae": dict(VAE), "scheduler": dict(SCHEDULER)}
    configs[part] |= broken
    with pytest.raises(FileFormatError, match=r"mine: no configuration of a system that can be built .*convert it again") as error:
        from_folded(configs, {}, "mine", SHAPE)
    assert "\n" not in str(error.value)
    given = replace(opened, **{f"{k}_config": v for k, v in configs.items()})
    with pytest.raises(FileFormatError, match=r"of no system that can be built .*copy or download them again") as error:
        sd21._of_backbone(given, SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("configs", [[], {"unet": [], "vae": {}, "scheduler": []}, {"unet": UNET, "vae": VAE, "scheduler": []}])
def test_configurations_of_another_kind_are_one_line(configs):
    with pytest.raises(FileFormatError, match="no configuration of a system that can be built"):
        from_folded(configs, {}, "mine", SHAPE)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"modules": "{}"}, "missing: unet_lora_decoder_modules"),
        ({"modules": "[]"}, "its header is broken"),
        ({"ranks": "{}"}, "3 missing: rank_unet, rank_vae, rank_vae_c"),
        ({"ranks": '{"unet": 4, "vae": 0, "vae_c": "4"}'}, "expected whole numbers above 0"),
        ({"ranks": "3"}, "its header is broken"),
        ({"facts": "[]"}, "its header is broken"),
        ({}, r"weights that are not finite: mid_block.resnets.0.conv1.lora_A.default_others.weight"),
    ],
)
def test_a_broken_file_of_adapters_is_one_line(weights, tmp_path, header, said):
    path = tmp_path / "a.safetensors"
    save_adapters(read_released(weights), path, {"steps": {}})
    with safe_open(path, "pt") as stored:
        whole = stored.metadata()
    kept = load_file(path)
    if not header:
        kept[f"unet/{UNET_KEY}"].fill_(float("nan"))
    save_file(kept, path, whole | header)
    with pytest.raises(FileFormatError, match=said) as error:
        read_adapters(path)
    assert "\n" not in str(error.value)


def test_inputs_are_light_then_code_and_the_long_frame_weighs_less():
    made = network_input(torch.full((1, 3, 1, 1), 0.5), 4.0)
    assert made[0, :3].flatten().tolist() == pytest.approx([0.5**2.2 / 4] * 3)
    assert made[0, 3:].flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3, 3)])
def test_a_low_rank_update_is_two_layers_in_a_row(shape):
    down, up = torch.randn(2, *shape[1:]), torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
    x = torch.randn(1, shape[1], *[8] * (len(shape) - 2))
    apply = functional.conv2d if len(shape) == 4 else functional.linear
    torch.testing.assert_close(apply(x, low_rank(down, up)), apply(apply(x, down), up), rtol=1e-4, atol=1e-4)


# ---- published sizes ----


@pytest.mark.skipif(not COMPAT.is_dir(), reason="the list of released keys is not here (../shared/compat)")
def test_names_and_shapes_are_the_released_ones():
    keys = json.loads((COMPAT / "keys.json").read_text())
    with torch.device("meta"):
        made = {k: list(v.shape) for k, v in DaReg(DaRegShape()).state_dict().items()}
        assert made == keys["dareg"]
        assert {k: list(v.shape) for k, v in sd21.Context(1024).state_dict().items()} == keys["gmodiff"]["proj"]
    assert sum(torch.Size(s).numel() for s in keys["dareg"].values()) == pytest.approx(48.33e6, abs=5e3)
    assert skip_widths((128, 256, 512, 512)) == [(512, 512), (256, 512), (128, 512), (128, 256)]
    assert skip_widths(VAE["block_out_channels"]) == SKIPS


@pytest.mark.skipif(not COMPAT.is_dir(), reason="the maker of stand-in weights is not here (../shared/compat)")
def test_the_published_size_with_stand_in_weights(tmp_path, monkeypatch):
    monkeypatch.undo()
    subprocess.run([sys.executable, str(COMPAT / "make_weights.py"), str(tmp_path)], check=True)
    system = assemble(open_backbone(str(tmp_path / "sd")), read_released(tmp_path))
    given = frames(64, 75)
    refined = system.refine(given, EXPOSURES).gain
    del system
    assert (refined - Reference(tmp_path / "sd", tmp_path, DaRegShape())(given, EXPOSURES)).abs().max() < 1e-4


# ---- tiles and parts ----


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


def test_half_precision_is_near(system):
    given = frames(64, 64)
    wanted = system.refine(given, EXPOSURES).gain
    found = copying.deepcopy(system).place(torch.device("cpu"), torch.bfloat16).refine(given, EXPOSURES).gain
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().mean() < 0.05


# ---- refused ----


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.fixture
def copy(weights, tmp_path) -> Path:
    return Path(shutil.copytree(weights, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["gmodiff.pkl", "dareg_mask.pth"])
def test_a_pickle_with_code_is_refused_and_not_run(copy, name, capsys):
    for content in (pickle.dumps({"state_dict": Malicious()}), None):
        if content is None:
            torch.save({"state_dict": Malicious()}, copy / name)
        else:
            (copy / name).write_bytes(content)
        with pytest.raises(FileFormatError, match="would run code") as error:
            read_released(copy)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cut", [0, 100, 5000, -200])
def test_half_downloaded_files_are_refused(copy, cut):
    path = copy / "gmodiff.pkl"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileFormatError, match=r"gmodiff\.pkl: (half downloaded|empty); download it again$"):
        read_released(copy)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "a web page, not the file"),
        (b"\xef\xbb\xbf\n <html>", "a web page, not the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a pointer of git-lfs, not the file"),
        (b'{"error": "no access"}', "a text, not the file"),
    ],
)
def test_what_came_in_place_of_a_file_is_named(copy, backbone, tmp_path, content, said):
    (copy / "gmodiff.pkl").write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"gmodiff\.pkl: {said}.*download it again$"):
        read_released(copy)
    folder = Path(shutil.copytree(backbone, tmp_path / "b"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"safetensors: {said}.*download it again$"):
        open_backbone(str(folder))


def test_exchanged_files_are_named(copy):
    one, other = copy / "dareg_mask.pth", copy / "gmodiff.pkl"
    dareg, stored = one.read_bytes(), other.read_bytes()
    one.write_bytes(stored)
    with pytest.raises(FileFormatError, match=r"dareg_mask\.pth: holds what belongs into gmodiff\.pkl"):
        read_released(copy)
    other.write_bytes(dareg)
    with pytest.raises(FileFormatError, match=r"dareg_mask\.pth and gmodiff\.pkl are exchanged; give each the other's name"):
        read_released(copy)
    one.write_bytes(dareg)
    with pytest.raises(FileFormatError, match=r"gmodiff\.pkl: holds a regressor"):
        read_released(copy)


def test_missing_files_and_folders_are_named(copy, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        read_released(tmp_path / "nowhere")
    (copy / "gmodiff.pkl").unlink()
    with pytest.raises(InputError, match=r"gmodiff\.pkl not there"):
        read_released(copy)


def change(copy: Path, edit) -> None:
    stored = torch.load(copy / "gmodiff.pkl", weights_only=True)
    edit(stored)
    torch.save(stored, copy / "gmodiff.pkl")


UNET_KEY = "mid_block.resnets.0.conv1.lora_A.default_others.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s["state_dict_unet"].pop(UNET_KEY), f"of another model or version; .*1 missing: {UNET_KEY}"),
        (lambda s: s["state_dict_vae"].update(surprise=torch.zeros(1)), "1 unexpected: surprise"),
        (lambda s: s["state_dict_vae_c"].update({"encoder.more": torch.zeros(1)}), r"1 unexpected: encoder\.more"),
        (lambda s: s["state_dict_unet"].update({UNET_KEY: torch.zeros(2, 16, 3, 3)}), r"\[2, 16, 3, 3\] instead of \[4, 16, 3, 3\]"),
        (lambda s: s["proj"].pop("mlp.2.bias"), r"1 missing: mlp\.2\.bias"),
        (lambda s: s.pop("rank_vae"), "not the released GMODiff checkpoint.*1 missing: rank_vae"),
        (lambda s: s.update(rank_vae="4"), "expected whole numbers"),
        (lambda s: s.update(unet_lora_others_modules="conv_in"), "no list of module names"),
        (
            lambda s: s["unet_lora_others_modules"].append("mid_block.nothing"),
            r"made for another backbone; .*1 adapters on .*: mid_block\.nothing",
        ),
        (lambda s: s["unet_lora_others_modules"].append("up_blocks.0.resnets.0.conv1"), "2 missing: up_blocks"),
        (lambda s: s["state_dict_unet"].update({UNET_KEY: torch.full((4, 16, 3, 3), float("nan"))}), f"that are not finite: {UNET_KEY};"),
        (lambda s: s["state_dict_unet"].update({UNET_KEY: 3}), f"that are not a tensor: {UNET_KEY};"),
        (lambda s: s["state_dict_unet"].update({f"module.{UNET_KEY}": torch.zeros(1)}), f"that are there twice: {UNET_KEY};"),
        (lambda s: s.update(state_dict_vae=[1]), "where weights by name are expected"),
    ],
)
def test_every_key_is_accounted_for(copy, backbone, edit, said):
    change(copy, edit)
    with pytest.raises(FileFormatError, match=said) as error:
        assemble(open_backbone(str(backbone)), read_released(copy))
    assert "\n" not in str(error.value)


def test_many_differences_are_counted(copy, backbone):
    change(copy, lambda s: s.update(state_dict_unet={}))
    with pytest.raises(FileFormatError, match=r"another model or version; .*\(\d+ missing: conv_in[^,]*,[^,]*,[^,]* and \d+ more\)$"):
        assemble(open_backbone(str(backbone)), read_released(copy))


def test_prefixes_and_repeats_are_harmless(copy, backbone, system):
    def edit(stored):
        for part in ("state_dict_unet", "state_dict_vae", "state_dict_vae_c", "proj"):
            stored[part] = {f"module.{k}": v for k, v in stored[part].items()}
        stored["unet_lora_others_modules"] *= 3
        for n in range(1, 5):
            del stored["state_dict_vae_c"][f"module.decoder.skip_conv_{n}.weight"]  # the unused ones

    change(copy, edit)
    again = assemble(open_backbone(str(backbone)), read_released(copy))
    assert_same(system, again)


def test_a_regressor_of_another_size_is_refused(copy, backbone):
    torch.save({"state_dict": DaReg(DaRegShape(widths=(8, 8, 12, 16, 40), decoder=(1,) * 4)).state_dict()}, copy / "dareg_mask.pth")
    with pytest.raises(FileFormatError, match=r"dareg_mask\.pth: weights of another size or backbone; .*of another shape"):
        assemble(open_backbone(str(backbone)), read_released(copy))
    torch.save({"model": {}}, copy / "dareg_mask.pth")
    with pytest.raises(FileFormatError, match="no state_dict in it, but model"):
        read_released(copy)


def test_released_in_memory_is_what_is_read(weights):
    stored = torch.load(weights / "gmodiff.pkl", weights_only=True)
    dareg = torch.load(weights / "dareg_mask.pth", weights_only=True)["state_dict"]
    assert released_from(dareg, stored, "a", "b").modules == read_released(weights).modules
    assert len(read_released(weights).modules["vae_lora_encoder_modules"]) < len(stored["vae_lora_encoder_modules"])


# ---- backbones ----


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("unet", {"cross_attention_dim": 768}, r"Stable Diffusion 1\.x"),
        ("unet", {"cross_attention_dim": 2048}, "Stable Diffusion XL"),
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet", {"in_channels": 9}, "an inpainting model of 9 channels"),
        ("unet", {"in_channels": [4]}, r"another model of \[4\] channels"),
        ("vae", {"block_out_channels": 4}, "another VAE"),
        ("unet", {"cross_attention_dim": 33}, "a model whose context is 33 wide"),
        ("unet", {"_class_name": "FluxTransformer2DModel"}, "a FluxTransformer2DModel"),
        ("scheduler", {"prediction_type": "v_prediction"}, "predicts v_prediction"),
        ("scheduler", {"beta_schedule": "linear"}, "a linear noise schedule"),
        ("scheduler", {"num_train_timesteps": 400}, "a model of 400 steps of noise"),
        ("scheduler", {"num_train_timesteps": 2000}, "a model of 2000 steps of noise"),
        ("scheduler", {"num_train_timesteps": None}, "a model of None steps of noise"),
        ("vae", {"latent_channels": 16}, "another VAE"),
    ],
)
def test_other_models_are_recognised(backbone, tmp_path, part, change, said):
    folder = Path(shutil.copytree(backbone, tmp_path / "b"))
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=said) as error:
        open_backbone(str(folder))
    assert "expected Stable Diffusion 2.1 base" in str(error.value)


def test_broken_backbones_are_named(backbone, tmp_path):
    folder = Path(shutil.copytree(backbone, tmp_path / "b"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"version 1\noid sha256:0\nsize 5\n", b""):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"unet/diffusion_pytorch_model\.safetensors: [\w ,-]+; download it again$"):
            open_backbone(str(folder))
    file.unlink()
    with pytest.raises(InputError, match="no weights in unet"):
        open_backbone(str(folder))
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match="not a configuration"):
        open_backbone(str(folder))
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match=r"no vae/config\.json in it"):
        open_backbone(str(folder))
    with pytest.raises(InputError, match="no such folder"):
        open_backbone(str(tmp_path / "none" / "at" / "all"))
    with pytest.raises(InputError, match="one file"):
        open_backbone(__file__)


def test_a_backbone_of_another_size_is_refused(weights, tmp_path):
    folder = write_backbone(tmp_path, unet=UNET | {"block_out_channels": [8, 16, 16, 24]})
    with pytest.raises(FileFormatError, match="of another shape"):
        assemble(open_backbone(str(folder)), read_released(weights))


def test_a_backbone_that_lacks_a_weight_is_refused(backbone, weights, tmp_path):
    folder = Path(shutil.copytree(backbone, tmp_path / "b"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    kept = load_file(path)
    del kept["encoder.conv_in.bias"]
    save_file(kept, path)
    with pytest.raises(FileFormatError, match=r"vae: .*1 missing: encoder\.conv_in\.bias"):
        assemble(open_backbone(str(folder)), read_released(weights))


def test_old_names_of_attention_and_other_files_are_read(backbone, weights, tmp_path, system):
    """As Stable Diffusion 2.1 was published: attention called query, key, value, proj_attn, here as 1x1 convolutions, in a .bin."""
    folder = Path(shutil.copytree(backbone, tmp_path / "b"))
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    new, kept = load_file(path), {}
    for key, value in new.items():
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".attentions.0.{now}." in key:
                key, value = key.replace(now, then), value[..., None, None] if value.ndim == 2 else value
        kept[key] = value
    assert len(set(kept) - set(new)) == 16
    path.unlink()
    torch.save(kept, path.with_suffix(".bin"))
    again = assemble(open_backbone(str(folder)), read_released(weights))
    assert_same(system, again)


def test_a_hub_is_asked_only_for_what_is_not_on_disk(backbone, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def download(name, file, local_files_only=False):
        asked.append((file, local_files_only))
        path = backbone / file
        if local_files_only and file.startswith("vae"):
            raise LocalEntryNotFoundError("not in the cache")
        if not path.is_file():
            raise EntryNotFoundError("not there")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    opened = open_backbone("owner/model")
    assert opened.name == "owner/model"
    assert {f for f, local in asked if not local} == {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}

    def half_cached(name, file, local_files_only=False):
        """Offline, with the smaller weights in the cache."""
        plain = file.replace(".fp16", "")
        if not local_files_only or (plain == file and file.endswith(".safetensors")) or file.endswith(".bin"):
            raise LocalEntryNotFoundError("not in the cache")
        return str(backbone / plain)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", half_cached)
    assert set(open_backbone("owner/model").unet) == set(opened.unet)

    def offline(name, file, local_files_only=False):
        raise LocalEntryNotFoundError("not in the cache and no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(InputError, match=r"--backbone owner/model: no such folder here, unet/config\.json is not in the hub's cache"):
        open_backbone("owner/model")

    def refuses(name, file, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        raise RuntimeError("401 no such model\nor a private one")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuses)
    with pytest.raises(InputError, match="the hub does not give it") as error:
        open_backbone("owner/model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [ConnectionError("no network"), TimeoutError("no answer")])
def test_a_hub_out_of_reach_is_asked_once(monkeypatch, error):
    import huggingface_hub

    asked = []

    def head(url, timeout):
        asked.append(timeout)
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
    with pytest.raises(InputError, match=r"--backbone nobody-at/all: no such folder here, .* the hub cannot be reached"):
        open_backbone("nobody-at/all")
    assert len(asked) == 1
    assert asked[0] <= 10


def test_a_hub_without_the_model_says_so(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def head(url, timeout):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
    with pytest.raises(InputError, match="the hub has no such model, or none that you may see"):
        open_backbone("nobody-at/all")


def test_a_mistyped_folder_asks_no_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def ask(*a, **k):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    (tmp_path / "full").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--backbone full/nope: no such folder, in full/, which is here"):
        open_backbone("full/nope")


def test_without_diffusers_the_extra_is_named(backbone, weights, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"gmodiff\[sd21\]"):
        assemble(open_backbone(str(backbone)), read_released(weights))

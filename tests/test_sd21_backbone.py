"""Backbones of the full-size system: other models, broken folders, old names, and configurations of no system."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.model import sd21
from gmodiff.model.released import read_released
from gmodiff.model.sd21 import assemble, from_folded
from gmodiff.model.sd21_backbone import open_backbone
from sd21_standin import SCHEDULER, SHAPE, UNET, VAE, assert_same, write_backbone

pytestmark = pytest.mark.usefixtures("small_sd21")


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


def test_without_diffusers_the_extra_is_named(backbone, weights, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"gmodiff\[sd21\]"):
        assemble(open_backbone(str(backbone)), read_released(weights))


# ---- configurations, of a backbone and in a converted file ----


BROKEN = [
    ("vae", {"block_out_channels": [8, 12], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}),
    ("vae", {"up_block_types": ["UpDecoderBlock2D"] * 5}),
    ("vae", {"norm_num_groups": 0}),
    ("unet", {"norm_num_groups": 0}),
    ("unet", {"block_out_channels": [8, 16]}),
    ("scheduler", {"beta_start": []}),
]


@pytest.mark.parametrize("steps", [400, 2000, "many"])
def test_a_schedule_of_another_length_is_refused_in_a_converted_file_too(steps):
    configs = {"unet": UNET, "vae": VAE, "scheduler": SCHEDULER | {"num_train_timesteps": steps}}
    with pytest.raises(FileFormatError, match=rf"mine: .*num_train_timesteps is {steps}, expected 1000.*convert it again"):
        from_folded(configs, {}, "mine", SHAPE)


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

"""The released files of the full-size system: every key is accounted for, and what is refused is named."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.dareg import DaReg, DaRegShape
from gmodiff.model.released import read_released, released_from
from gmodiff.model.sd21 import assemble
from gmodiff.model.sd21_backbone import open_backbone
from gmodiff.model.sd21_files import read_adapters, save_adapters
from sd21_standin import assert_same

pytestmark = pytest.mark.usefixtures("small_sd21")
UNET_KEY = "mid_block.resnets.0.conv1.lora_A.default_others.weight"


@pytest.fixture
def copy(weights, tmp_path) -> Path:
    return Path(shutil.copytree(weights, tmp_path / "copy"))


def change(copy: Path, edit) -> None:
    stored = torch.load(copy / "gmodiff.pkl", weights_only=True)
    edit(stored)
    torch.save(stored, copy / "gmodiff.pkl")


# ---- files that are something else ----


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


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


# ---- keys ----


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


# ---- adapters that training saved ----


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

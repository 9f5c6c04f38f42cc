"""The diffusion model that the full-size system stands on: Stable Diffusion 2.1 base, as a diffusers folder or from a hub.

A folder is read as it is. A hub id (OWNER/NAME) is looked up in the hub's cache on this disk first; only what is not there is fetched, and
nothing at all where HF_HUB_OFFLINE is set. Other models are recognised by their configuration and refused before their weights are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.model.diffusion import STEPS
from gmodiff.model.released import Weights, load_tensors, what_is_there

CONTEXT_WIDTH = 1024
"""Width of the context that the UNet attends to: Stable Diffusion 2.x's, and the bottleneck of the published regressor."""
LATENT_CHANNELS = 4
REACH_SECONDS = 5.0
"""How long a hub may take to answer at all."""

_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
"""Names under which diffusers keeps weights, the best first."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What attention in a VAE was called when Stable Diffusion 2.1 was published, and since."""


@dataclass(frozen=True)
class Backbone:
    """name: the path or hub id.   The configurations are diffusers' own; weights are as stored, by diffusers' names."""

    name: str
    unet_config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    unet: Weights = field(repr=False)
    vae: Weights = field(repr=False)

    def digest(self) -> str:
        """16 hex digits of its weights and configurations, wherever it lies; some seconds for those of Stable Diffusion 2.1."""
        parts = {"unet": self.unet_config, "vae": self.vae_config, "scheduler": self.scheduler_config}
        # What begins with _ says where a copy came from, and which version wrote it.
        configs = {part: {k: v for k, v in config.items() if not k.startswith("_")} for part, config in parts.items()}
        found = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
        for part in (self.unet, self.vae):
            for name, values in sorted(part.items()):
                found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
                found.update(values.detach().contiguous().cpu().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]


def open_backbone(name: str) -> Backbone:
    """The backbone in a folder, or of a hub id.

    Raises InputError where it is not there, cannot be fetched, or is another model; FileFormatError for broken files.
    """
    folder = Path(name)
    is_folder = folder.exists() or not _HUB_ID.fullmatch(name) or folder.parent.is_dir()  # full/nope, where full/ is here, is mistyped
    source = _Folder(folder) if is_folder else _Hub(name)
    configs = {part: _config(source, part, file) for part, file in _CONFIGS.items()}
    check_backbone(name, configs["unet"], configs["vae"], configs["scheduler"])
    unet, vae = (_weights(source, part) for part in ("unet", "vae"))
    return Backbone(name, configs["unet"], configs["vae"], configs["scheduler"], unet, _renamed(vae))


_CONFIGS = {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}


def check_backbone(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Raise InputError, saying what it is, unless these are the configurations of Stable Diffusion 2.1 base."""
    width, inputs = unet.get("cross_attention_dim"), unet.get("in_channels", LATENT_CHANNELS)
    prediction, widths = scheduler.get("prediction_type", "epsilon"), vae.get("block_out_channels")
    what = None
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        what = f"a {unet['_class_name']}"
    elif unet.get("addition_embed_type") or width in (1280, 2048):
        what = "Stable Diffusion XL"
    elif width == 768:
        what = "Stable Diffusion 1.x (its context is 768 wide)"
    elif width != CONTEXT_WIDTH:
        what = f"a model whose context is {width} wide"
    elif inputs != LATENT_CHANNELS:
        kinds = {"9": "an inpainting model", "5": "a depth model", "7": "an upscaler"}
        what = f"{kinds.get(str(inputs), 'another model')} of {inputs} channels"
    elif prediction != "epsilon":
        what = f"a model that predicts {prediction} (Stable Diffusion 2.1 for 768 pixels does)"
    elif vae.get("latent_channels") != LATENT_CHANNELS or not isinstance(widths, (list, tuple)) or len(widths) != 4:
        what = "a model with another VAE"
    elif scheduler.get("beta_schedule") != "scaled_linear":
        what = f"a model with a {scheduler.get('beta_schedule')} noise schedule"
    elif scheduler.get("num_train_timesteps", STEPS) != STEPS:
        what = f"a model of {scheduler['num_train_timesteps']!r} steps of noise (num_train_timesteps), not {STEPS}"
    if what is not None:
        raise InputError(
            f"--backbone {name}: {what}; expected Stable Diffusion 2.1 base (context {CONTEXT_WIDTH} wide, predicts epsilon), "
            "which the released weights were trained on"
        )


def model_classes() -> tuple[Any, Any]:
    """AutoencoderKL and UNet2DConditionModel of diffusers. Raises MissingDependencyError where it is not there or cannot be loaded."""
    try:
        return _import_classes()
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "diffusers":
            raise MissingDependencyError('the full-size model needs diffusers: pip install "gmodiff[sd21]"') from None
        first = error
    # A torchvision built for another torch fails as it is imported, and diffusers imports what it finds. Nothing of it is needed here.
    with _hidden("torchvision"):
        try:
            return _import_classes()
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[-1] or str(first).splitlines()[0]
            raise MissingDependencyError(f'diffusers cannot be loaded ({said[:160]}): pip install --upgrade "gmodiff[sd21]"') from None


def _import_classes() -> tuple[Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return AutoencoderKL, UNet2DConditionModel


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Within, the package looks as if it were not installed; what diffusers half loaded before is forgotten."""
    for module in [m for m in sys.modules if m.split(".")[0] in (package, "diffusers")]:
        del sys.modules[module]
    sys.modules[package] = None  # type: ignore[assignment]  # documented: importing it then fails
    try:
        yield
    finally:
        del sys.modules[package]


# ---- files ------------------------------------------------------------------------------------------------------------------


class _Folder:
    """A diffusers folder on disk."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        if path.is_file():
            raise InputError(f"--backbone {path}: one file; expected a diffusers folder with unet, vae and scheduler, so convert it to one")
        if not path.is_dir():
            why = f"in {path.parent}/, which is here" if _HUB_ID.fullmatch(str(path)) else "and no hub id (OWNER/NAME)"
            raise InputError(f"--backbone {path}: no such folder, {why}; expected a diffusers folder with unet, vae and scheduler")

    def here(self, file: str) -> Path | None:
        path = self._path / file
        return path if path.is_file() else None

    def fetched(self, file: str) -> Path | None:
        """Nothing is fetched for a folder."""
        return None


class _Hub:
    """A model on a hub: the cache on this disk first, then the network."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reached = False
        model_classes()  # says what to install; the hub's client comes with it

    def here(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        except Exception as error:
            raise self._refused(error) from None

    def fetched(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        self._reach(file)
        try:
            return Path(hf_hub_download(self.name, file))
        except LocalEntryNotFoundError:  # not in the cache, and no network: before its parent class, which means "no such file"
            raise self._out_of_reach(file) from None
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise self._refused(error) from None

    def _reach(self, file: str) -> None:
        """Ask the hub once, without retries: a download tries for half a minute where there is no network, and warns of each time."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        if self._reached:
            return
        try:
            get_hf_file_metadata(hf_hub_url(self.name, file), timeout=REACH_SECONDS)
        except EntryNotFoundError:
            pass  # the model is there, and what it lacks is somebody else's to say
        except (HfHubHTTPError, ValueError) as error:
            raise self._refused(error) from None
        except Exception:  # of whichever client the hub's library stands on, or offline by choice
            raise self._out_of_reach(file) from None
        self._reached = True

    def _out_of_reach(self, file: str) -> InputError:
        return InputError(
            f"--backbone {self.name}: no such folder here, {file} is not in the hub's cache on this disk, and the hub cannot be "
            "reached; go online once, or give the path of a diffusers folder"
        )

    def _refused(self, error: Exception) -> InputError:
        from huggingface_hub.errors import RepositoryNotFoundError

        if isinstance(error, RepositoryNotFoundError):
            return InputError(
                f"--backbone {self.name}: no such folder here, and the hub has no such model, or none that you may see; check the name, "
                "log in to the hub, or give the path of a diffusers folder"
            )
        said = " ".join(str(error).split())[:160] or type(error).__name__
        return InputError(f"--backbone {self.name}: the hub does not give it ({said}); give the path of a diffusers folder")


def _config(source: _Folder | _Hub, part: str, file: str) -> dict[str, Any]:
    path = source.here(f"{part}/{file}") or source.fetched(f"{part}/{file}")
    if path is None:
        raise InputError(f"--backbone {source.name}: no {part}/{file} in it; expected a diffusers folder of Stable Diffusion 2.1 base")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: not a configuration ({str(error).splitlines()[0][:120]}); copy or download it again") from None
    if not isinstance(config, dict):
        raise FileFormatError(f"{path}: not a configuration; copy or download it again")
    return config


def _weights(source: _Folder | _Hub, part: str) -> dict[str, Tensor]:
    for look in (source.here, source.fetched):  # whatever is on this disk, before anything is fetched
        for name in _WEIGHTS:
            path = look(f"{part}/{name}")
            if path is not None:
                return read_safetensors(path) if path.suffix == ".safetensors" else _bin(path)
    raise InputError(f"--backbone {source.name}: no weights in {part}; expected {part}/{_WEIGHTS[0]}, perhaps the download is not complete")


def _bin(path: Path) -> dict[str, Tensor]:
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FileFormatError(f"{path}: no weights by name in it; copy or download it again")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises FileFormatError where it is cut short or of another kind."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, SafetensorError, ValueError):
        raise FileFormatError(f"{path}: {what_is_there(path) or 'half downloaded'}; download it again") from None


def _renamed(vae: Weights) -> dict[str, Tensor]:
    """Attention of a VAE by its names and shapes of today."""
    renamed = {}
    for key, value in vae.items():
        if ".attentions." in key:
            head, _, tail = key.partition(".attentions.0.")
            layer, _, leaf = tail.rpartition(".")
            key = f"{head}.attentions.0.{_OLD_ATTENTION.get(layer, layer)}.{leaf}"
            if value.ndim == 4:  # stored as a 1x1 convolution
                value = value[:, :, 0, 0]
        renamed[key] = value
    return renamed

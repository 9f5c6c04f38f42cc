"""A backbone by its name on a hub: asked only for what is not here, and once."""

from types import SimpleNamespace

import pytest

from gmodiff.errors import InputError
from gmodiff.model.sd21_backbone import open_backbone

pytestmark = pytest.mark.usefixtures("small_sd21")


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

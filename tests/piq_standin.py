"""Random weights where LPIPS and DISTS look for theirs, which are not ours to ship."""

import torch

from gmodiff.evaluate import perceptual


def put_stand_ins(name, monkeypatch, folder) -> None:
    """name: "lpips" or "dists".   folder: torch's cache, empty."""
    perceptual.import_torchvision()
    from torchvision.models import vgg16

    (folder / "checkpoints").mkdir()
    torch.manual_seed(0)
    features = {k: v for k, v in vgg16().state_dict().items() if k.startswith("features")}
    channels = (64, 128, 256, 512, 512)
    if name == "lpips":
        own = [torch.rand(1, c, 1, 1) for c in channels]
    else:
        own = {k: torch.rand(1, 3 + sum(channels), 1, 1) for k in ("alpha", "beta")}
        total = sum(float(w.sum()) for w in own.values())  # DISTS is one minus a mean: its weights sum to one
        own = {k: w / total for k, w in own.items()}
    for file in (perceptual.VGG_FILE, perceptual.PIQ_FILES[name]):
        (folder / "checkpoints" / file).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: own)
    monkeypatch.setattr("piq.perceptual.vgg16", lambda **k: _with(vgg16(), features))


def _with(model, weights):
    model.load_state_dict(weights, strict=False)
    return model

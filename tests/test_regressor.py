"""The compact network: its shape's promises (any number of frames, no memory of far pixels, budget), and its ONNX file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gmodiff import gainmap
from gmodiff.errors import FileFormatError
from gmodiff.model.regressor import GAIN_LIMIT, HALO_PX, Regressor, full_gain, mu_gain, radiance_from_mu_gain
from gmodiff.model.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def network() -> Regressor:
    """Random weights that do something everywhere: an untrained head is zero."""
    torch.manual_seed(3)
    made = Regressor()
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return made.eval()


def inputs(count: int = 3, height: int = 64, width: int = 96, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    stops = torch.linspace(-3, 3, count)
    stops = torch.cat([torch.zeros(1), stops[stops != 0][: count - 1]])
    return {
        "linear": torch.rand(1, count, 3, height, width, generator=rng),
        "stops": stops[None],
        "coverage": torch.ones(1, count, 1, height, width),
        "merged": torch.rand(1, 3, height, width, generator=rng) * 4,
        "encoded": torch.rand(1, 3, height, width, generator=rng),
    }


def test_an_untrained_network_leans_on_the_merge():
    given = inputs()
    with torch.no_grad():
        estimate = Regressor()(**given)
    assert torch.equal(estimate.residual, torch.zeros_like(estimate.residual))
    given["linear"] = given["merged"][:, None] * torch.exp2(given["stops"])[..., None, None, None]
    with torch.no_grad():
        assert Regressor()(**given).change.abs().max() < 1e-5  # frames that agree with the merge change nothing


def test_no_hue_is_made_up(network):
    """Where all photos and the merge are grey, the estimate is grey: the residual is the same to all channels."""
    given = inputs()
    given = {k: v.mean(dim=-3, keepdim=True).expand_as(v) if v.ndim > 3 and v.shape[-3] == 3 else v for k, v in given.items()}
    with torch.no_grad():
        estimate = network(**given)
    assert estimate.residual.abs().max() > 0.01
    assert (estimate.change - estimate.change[:, :1]).abs().max() < 1e-6


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_supporting_frames_have_no_order(network, count):
    given = inputs(count)
    order = [0, *reversed(range(1, count))]
    with torch.no_grad():
        one = network(**given).change
        other = network(**{k: v[:, order] if k in ("linear", "stops", "coverage") else v for k, v in given.items()}).change
    assert torch.allclose(one, other, atol=1e-5)


def test_a_frame_nowhere_covered_and_clipped_is_not_used(network):
    """Only its logits could bring it in; its shares vanish, so its light does not show."""
    given = inputs(3)
    given["coverage"][:, 2] = 0
    given["linear"][:, 2] = 1
    with torch.no_grad():
        one = network(**given)
        given["linear"][:, 2] *= 0.95  # still clipped, less light: what shows of it is what the frame's share of the gain lets through
        other = network(**given)
        given["coverage"][:, 2] = 1
        given["linear"][:, 2] = 0.3
        believed = network(**given)
    shares = [e.change - e.residual for e in (one, other, believed)]
    assert (shares[0] - shares[1]).abs().max() < 1e-2
    assert (shares[0] - shares[2]).abs().max() > 0.05


def test_what_is_farther_than_the_halo_does_not_matter(network):
    given = inputs(3, 64, 3 * HALO_PX)
    other = {k: v.clone() for k, v in given.items()}
    for name in ("linear", "merged", "encoded"):
        other[name][..., 2 * HALO_PX :] = 0.5
    with torch.no_grad():
        one, two = (network(**g).change for g in (given, other))
    assert (one - two)[..., :HALO_PX].abs().max() < 1e-3
    assert (one - two)[..., 2 * HALO_PX :].abs().max() > 1e-2


def test_the_gain_is_the_one_formula():
    rng = np.random.default_rng(0)
    radiance, encoded = rng.random((2, 3, 4)) * 3, rng.random((2, 3, 4))
    ours = mu_gain(torch.from_numpy(radiance), torch.from_numpy(encoded))
    np.testing.assert_allclose(ours, gainmap.mu_gain(radiance, encoded), rtol=1e-6)
    np.testing.assert_allclose(
        radiance_from_mu_gain(ours, torch.from_numpy(encoded)), gainmap.radiance_from_mu_gain(ours.numpy(), encoded), rtol=1e-6
    )


def test_highlights_above_the_short_frame_fit_into_the_gain():
    """Ten times the white of the shortest frame over a clipped reference, at any spacing of exposures."""
    for shortest in (-1.0, -4.0, -8.0):
        white = 2.0**-shortest
        merged = torch.full((1, 3, 1, 1), 10 * white)
        stops, encoded = torch.tensor([[0.0, shortest]]), torch.ones(1, 3, 1, 1)
        gain = full_gain(torch.zeros(1, 3, 1, 1), merged, stops, encoded)
        assert float(gain.max()) < GAIN_LIMIT
        assert torch.allclose(radiance_from_mu_gain(gain, encoded) * white, merged, rtol=1e-4)


def test_budget():
    """3 million parameters, 16 GMAC per megapixel with three frames (issue 4)."""
    network = Regressor()
    assert sum(p.numel() for p in network.parameters()) < 3e6
    total = 0

    def count(module, given, out):
        nonlocal total
        weights = module.weight
        total += out.numel() // out.shape[1] * weights.numel() if isinstance(module, nn.Conv2d) else out.numel() * weights.shape[1]

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(**inputs(3, 256, 256), with_mask=True)
    assert 5e3 < total / 256**2 < 16e3


# ---- files ----


def test_weights_survive_their_file(network, tmp_path):
    write_weights(network, tmp_path / "w.safetensors", {"steps": {"regressor": 7}})
    again, facts = read_weights(tmp_path / "w.safetensors")
    assert facts == {"steps": {"regressor": 7}}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())


def test_foreign_and_broken_weights_are_refused(network, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="another program"):
        read_weights(tmp_path / "foreign.safetensors")
    write_weights(network, tmp_path / "w.safetensors", {})
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="not a weights file"):
        read_weights(tmp_path / "cut.safetensors")
    fewer = {k: v for k, v in network.state_dict().items() if "middle" not in k}
    header = {"format": "gmodiff-regressor-2", "shape": json.dumps(network.shape.as_dict())}
    save_file({k: v.contiguous() for k, v in fewer.items()}, tmp_path / "fewer.safetensors", header)
    with pytest.raises(FileFormatError, match="not the weights"):
        read_weights(tmp_path / "fewer.safetensors")


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    from gmodiff.model.export import export_onnx
    from gmodiff.model.on_arrays import RegressorOnArrays

    folder = tmp_path_factory.mktemp("onnx")
    write_weights(network, folder / "w.safetensors", {}, half=True)
    export_onnx(RegressorOnArrays(read_weights(folder / "w.safetensors")[0]), folder / "w.onnx")
    return folder


@pytest.mark.parametrize(("count", "height", "width"), [(2, 32, 64), (3, 96, 64), (9, 64, 64)])
def test_the_onnx_file_agrees_with_torch_at_any_size(exported, count, height, width):
    import onnxruntime

    half, _ = read_weights(exported / "w.safetensors")
    given = inputs(count, height, width, seed=1)
    with torch.no_grad():
        wanted = half(**given, with_mask=True)
    session = onnxruntime.InferenceSession(exported / "w.onnx", providers=["CPUExecutionProvider"])
    flat = {k: (v[0] if k in ("linear", "stops", "coverage") else v).numpy() for k, v in given.items()}
    change, residual, degradation, *context = session.run(None, flat)
    assert np.abs(change - wanted.change.numpy()).max() < 1e-3
    assert np.abs(wanted.change.numpy()).max() > 0.05
    np.testing.assert_allclose(residual, wanted.residual.abs(), atol=1e-3)
    np.testing.assert_allclose(degradation, torch.sigmoid(wanted.degradation), atol=1e-3)
    for found, seen in zip(context, wanted.context, strict=True):
        np.testing.assert_allclose(found, seen, atol=2e-3 * float(seen.abs().max()))


def test_the_onnx_file_is_stored_in_half_precision(exported, network):
    parameters = sum(p.numel() for p in network.parameters())
    assert (exported / "w.onnx").stat().st_size < 2.3 * parameters


DROPPED_ELSEWHERE = """
import signal, threading
import numpy as np
from gmodiff.runtime import load_model

signal.signal(signal.SIGINT, lambda *_: print("handled"))
held = [load_model(runtime="openvino").noise_reducer]
held[0]({k: np.ones((1, 3, 64, 64), np.float32) for k in ("held", "merged", "seen", "sigma")})
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_after_a_model_was_dropped_in_another_thread_kills_nobody():
    """OpenVINO's plugin took the stack that signal handlers run on with it."""
    done = subprocess.run([sys.executable, "-c", DROPPED_ELSEWHERE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_openvino_is_loaded_without_its_telemetry(tmp_path):
    """It would write an identifier into the home folder, and report to an analytics host. A process of its own, since one imports once."""
    script = (
        "from gmodiff.runtime import load_model; import sys; load_model(runtime='openvino'); print('openvino_telemetry' in sys.modules)"
    )
    env = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert list(tmp_path.iterdir()) == []

"""Training of the full-size system on a stand-in backbone: stages learn, go on where they were killed, and leave the released files."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

from command_line import run
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.model.dareg import GAMMA, DaReg
from gmodiff.model.released import DAREG_FILE, GMODIFF_FILE, read_dareg, read_released, write_dareg
from gmodiff.model.sd21 import assemble
from gmodiff.model.sd21_backbone import open_backbone
from gmodiff.model.sd21_files import read_facts, read_sd21, save_folded
from gmodiff.train.full_size import perceptual_loss, regress, three_frames
from gmodiff.train.loop import CHECKPOINT, WEIGHTS, check, train
from gmodiff.train.recipes import FULL_MASK, FULL_ONE_STEP, FULL_REGRESSOR, Recipe
from gmodiff.train.stages import begin
from live_bytes import LiveBytes
from piq_standin import put_stand_ins
from sd21_standin import RANK, SHAPE, UNET, WIDTH, Reference, assert_same, checkpoint, write_backbone

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread", "small_sd21")


def small(recipe: Recipe, **more) -> Recipe:
    quick = {
        "steps": 6,
        "scenes": 3,
        "batch": 2,
        "crop_px": 64,
        "warm_up": 1,
        "save_every": 3,
        "check_scenes": 1,
        "full": SHAPE,
        "rank": RANK,
    }
    return replace(recipe, **quick | {"rate": 2e-3, "ema": 0.5} | more)


def batches(store, count: int = 2) -> dict[str, torch.Tensor]:
    """Two crops that a stage sees."""
    from gmodiff.train.crops import Batches

    return Batches(store, small(FULL_REGRESSOR, batch=count))[0]


def loss_of(stage, batch, part: str = "") -> float:
    with torch.no_grad():
        loss, parts = stage(batch, 0)
    return float(parts[part] if part else loss)


@pytest.fixture(scope="module")
def dareg(tmp_path_factory) -> Path:
    """An untrained regressor that has been through both stages, as far as its facts say."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("mask") / WEIGHTS
    write_dareg(DaReg(SHAPE), path, {"steps": {"sd21-regressor": 1, "sd21-mask": 1}})
    return path


# ---- what the networks see ----


def frames(stops: list[float], clipped: list[float]) -> dict[str, torch.Tensor]:
    """A batch of one scene whose frames are flat: the first is the reference."""
    count = len(stops)
    linear = torch.arange(1, count + 1).float()[None, :, None, None, None].expand(1, count, 3, 2, 2) / 10
    return {
        "linear": linear,
        "coverage": torch.ones(1, count, 1, 2, 2),
        "stops": torch.tensor([stops]),
        "clipped": torch.tensor([clipped]),
        "truth": torch.full((1, 3, 2, 2), 0.25),
    }


def test_three_frames_are_chosen_as_in_use():
    three = three_frames(frames([0.0, -3.0, 2.0, -1.0], [0.5, 0.0, 0.9, 0.1]))  # the one a stop shorter clips, so the shortest
    assert three.exposures.tolist() == [[1.0, 8.0, 32.0]]
    assert three.white.tolist() == [0.125]
    torch.testing.assert_close(three.encoded[0, :, 0, 0, 0] ** GAMMA, torch.tensor([0.2, 0.1, 0.3]))
    torch.testing.assert_close(three.truth, torch.full((1, 3, 2, 2), 0.25))

    longer = three_frames(frames([0.0, -3.0, 2.0, -1.0, 0.7], [0.5, 0.0, 0.9, 0.0, 0.8]))  # it does not clip: the long one is near too
    torch.testing.assert_close(longer.exposures, torch.tensor([[1.0, 2.0, 2.0 * 2**0.7]]))
    torch.testing.assert_close(longer.truth, torch.ones(1, 3, 2, 2))  # in units of that frame's white, two stops above the shortest's

    alone = three_frames(frames([0.0, 2.0], [0.5, 0.9]))  # no shorter frame: the reference takes its place
    assert alone.exposures.tolist() == [[1.0, 1.0, 4.0]]


def test_what_a_frame_does_not_cover_shows_the_reference():
    batch = frames([0.0, -3.0, 2.0, -1.0], [0.5, 0.0, 0.9, 0.1])
    batch["coverage"] = torch.tensor([1.0, 0.0, 0.0, 1.0])[None, :, None, None, None].expand(1, 4, 1, 2, 2)
    encoded = three_frames(batch).encoded  # the reference's 0.1, at 1/8 and 4 times its exposure
    torch.testing.assert_close(encoded[0, :, 0, 0, 0] ** GAMMA, torch.tensor([0.0125, 0.1, 0.4]))


def test_a_crop_knows_what_clips_in_its_whole_frame(store):
    from gmodiff.full_estimate import clipped_share

    batch = batches(store, 2)
    shares = [[clipped_share(c, 65536) for c in store[k].codes] for k in range(3)]
    for found in batch["clipped"].tolist():
        assert any(found == pytest.approx(s) for s in shares)


# ---- stages 1 and 2 ----


def test_the_regressor_learns_then_its_mask_and_the_released_file_is_read(store, tmp_path):
    recipe = small(FULL_REGRESSOR, steps=25)
    before = begin(recipe, None)
    weights = train(recipe, store, tmp_path / "one", workers=0, say=lambda _: None)
    after = begin(recipe, weights)
    batch = batches(store)
    assert loss_of(after, batch) < 0.8 * loss_of(before, batch)

    masked = small(FULL_MASK, steps=25)
    frozen = {k: v.clone() for k, v in read_dareg(weights, SHAPE)[0].state_dict().items()}
    found = train(masked, store, tmp_path / "two", start=weights, workers=0, say=lambda _: None)
    network, facts = read_dareg(found, SHAPE)
    assert facts["steps"] == {"sd21-regressor": 25, "sd21-mask": 25}
    head = {n for n, p in network.named_parameters() for m in network.mask_parameters() if p is m}
    assert all(torch.equal(v, frozen[k]) == (k not in head) for k, v in network.state_dict().items())
    assert loss_of(begin(masked, found), batch) < loss_of(begin(masked, weights), batch)
    released, _ = read_dareg(tmp_path / "two" / "dareg_mask.pth", SHAPE)
    encoded, exposures, _, _ = three_frames(batch)
    with torch.no_grad():
        assert torch.equal(regress(released, encoded, exposures).mask, regress(network, encoded, exposures).mask)


def test_a_stage_without_its_start_and_weights_of_another_shape_are_refused(dareg, tmp_path):
    with pytest.raises(InputError, match="--from"):
        begin(small(FULL_MASK), None)
    with pytest.raises(FileFormatError, match="of another shape"):
        begin(small(FULL_MASK, full=replace(SHAPE, mask=8)), dareg)
    with pytest.raises(InputError, match="--regressor RUN and --backbone PATH"):
        begin(small(FULL_ONE_STEP), None, dareg)
    write_dareg(DaReg(SHAPE), tmp_path / WEIGHTS, {"steps": {"sd21-regressor": 1}})
    with pytest.raises(InputError, match="no trained mask"):
        begin(small(FULL_ONE_STEP), None, tmp_path / WEIGHTS, "backbone")


# ---- stage 3 ----


def test_it_begins_as_the_backbone_and_adapters_are_those_of_the_release(dareg, backbone):
    """Adapters change nothing before the first step; they lie on the modules that the released lists name."""
    stage = begin(small(FULL_ONE_STEP), None, dareg, str(backbone))
    plain = open_backbone(str(backbone))
    stored = stage.stored()
    assert torch.equal(stage.system.unet.mid_block.resnets[0].conv1.weight, plain.unet["mid_block.resnets.0.conv1.weight"])
    assert torch.equal(stage.system.unet.conv_in.weight[:, :4], plain.unet["conv_in.weight"])
    assert not stage.system.unet.conv_in.weight[:, 4:].any()
    released = checkpoint(backbone)
    for name in (n for n in released if n.endswith("_modules")):
        assert set(stored[name]) == set(released[name]), name
    unused = "decoder.skip_conv_"  # in the second VAE, which has no decoder here
    for part in ("state_dict_unet", "state_dict_vae", "state_dict_vae_c", "proj"):
        there = {k for k in released[part] if part != "state_dict_vae_c" or not k.startswith(unused)}
        assert set(stored[part]) == there, part


@pytest.mark.parametrize("adversarial", [0.0, 0.01])
def test_one_step_learns_and_leaves_files_that_load(store, dareg, backbone, tmp_path, adversarial):
    recipe = small(FULL_ONE_STEP, steps=30, rate=3e-3, adversarial=adversarial)
    before = begin(recipe, None, dareg, str(backbone))
    batch = batches(store)
    at_first = {k: loss_of(before, batch, k) for k in ("gain", "mu")}
    out = tmp_path / "run"
    weights = train(recipe, store, out, regressor=dareg, backbone=str(backbone), workers=0, say=lambda _: None)

    # The released layout gives the numbers that training saw.
    system = assemble(open_backbone(str(backbone)), read_released(out), SHAPE)
    trained = begin(recipe, None, dareg, str(backbone))
    trained.load_state_dict(torch.load(out / CHECKPOINT, weights_only=True)["averaged"])
    trained.eval()
    assert loss_of(trained, batch, "gain") < 0.9 * at_first["gain"]
    assert loss_of(trained, batch, "mu") < 0.9 * at_first["mu"]
    encoded, exposures, _, _ = three_frames({k: v[:1] for k, v in batch.items()})
    with torch.no_grad():
        _, _, _, wanted = trained._refined({k: v[:1] for k, v in batch.items()})
    found = system.refine(encoded[0], exposures[0]).gain
    torch.testing.assert_close(found, wanted.clamp(0, 1), rtol=0, atol=2e-5)
    torch.testing.assert_close(Reference(backbone, out, SHAPE)(encoded[0], exposures[0]), found, rtol=0, atol=1e-4)
    torch.testing.assert_close(read_sd21(weights, str(backbone), SHAPE).refine(encoded[0], exposures[0]).gain, found, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def earlier(store, dareg, backbone, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmodiff.model.sd21.PUBLISHED", SHAPE)
        patch.setattr("gmodiff.model.sd21_backbone.CONTEXT_WIDTH", WIDTH)
        recipe = small(FULL_ONE_STEP, steps=20, rate=3e-3)
        train(recipe, store, out, regressor=dareg, backbone=str(backbone), workers=0, say=lambda _: None)
    return out


@pytest.mark.parametrize("file", [WEIGHTS, DAREG_FILE])
def test_a_run_begins_where_an_earlier_one_ended(store, dareg, backbone, earlier, tmp_path, file):
    """From a run's weights, and from files in the released layout: the same loss to begin with, less after more steps."""
    batch = batches(store)
    fresh = begin(small(FULL_ONE_STEP), None, dareg, str(backbone))
    ended = begin(small(FULL_ONE_STEP), None, dareg, str(backbone))
    ended.load_state_dict(torch.load(earlier / CHECKPOINT, weights_only=True)["averaged"])
    recipe = small(FULL_ONE_STEP, steps=6, seed=9)
    begun = begin(recipe, earlier / file, None, str(backbone))
    assert begun.state_dict().keys() == ended.state_dict().keys()
    assert all(torch.equal(v, ended.state_dict()[k]) for k, v in begun.state_dict().items())
    assert_same(read_dareg(dareg, SHAPE)[0], begun.system.dareg)
    at_first = loss_of(begun, batch)
    assert at_first == loss_of(ended, batch) < 0.95 * loss_of(fresh, batch)

    out = tmp_path / "run"
    given = {"start": earlier / file, "backbone": str(backbone), "workers": 0, "say": lambda _: None}
    weights = train(recipe, store, out, **given)
    after = begin(recipe, weights, None, str(backbone))
    assert loss_of(after, batch) < at_first
    facts = read_facts(weights)
    before = {"sd21-regressor": 1, "sd21-mask": 1, "sd21-onestep": 20} if file == WEIGHTS else {"sd21-onestep": 0}
    assert facts["steps"] == before | {"sd21-onestep": before["sd21-onestep"] + 6}
    train(recipe, store, out, **given)  # goes on with the same weights, wherever they lie
    with pytest.raises(InputError, match="was begun with other weights to begin with"):
        train(recipe, store, out, regressor=dareg, **given | {"start": None})
    with pytest.raises(InputError, match=r"steps 6, now it is 7: .*another --out and --from"):
        train(replace(recipe, steps=7), store, out, **given)


def test_another_regressor_may_take_the_place_of_the_one_begun_with(backbone, earlier, tmp_path):
    torch.manual_seed(2)
    other = DaReg(SHAPE)
    its_own = {k: {"sd21-regressor": 7, "sd21-mask": 3} for k in ("steps", "spent", "data", "hardware")}
    write_dareg(other, tmp_path / WEIGHTS, its_own | {"recipe": {"seed": 77}})
    begun = begin(small(FULL_ONE_STEP), earlier / WEIGHTS, tmp_path / WEIGHTS, str(backbone))
    assert_same(other, begun.system.dareg)
    before, old = begun.before, read_facts(earlier / WEIGHTS)
    for name, values in its_own.items():
        assert before[name] == values | {"sd21-onestep": old[name]["sd21-onestep"]}
    assert before["recipe"] == {"seed": 77}
    assert before["backbone"] == old["backbone"]
    assert old["steps"] == {"sd21-regressor": 1, "sd21-mask": 1, "sd21-onestep": 20}


def test_what_cannot_be_begun_with_is_one_line(store, dareg, backbone, earlier, tmp_path):
    def refused(kind: type[GMODiffError], said: str, start: Path | None, on: Path | None = backbone, **more) -> None:
        with pytest.raises(kind, match=said) as error:
            begin(small(FULL_ONE_STEP, **more), start, None, on if on is None else str(on))
        assert "\n" not in str(error.value)

    run = earlier / WEIGHTS
    refused(InputError, "adapters of rank 4, and --rank is 8: give the same", run, rank=8)
    refused(InputError, "give --regressor RUN and --backbone PATH", run, None)
    refused(FileFormatError, "weights of 'gmodiff-dareg-1', expected adapters", dareg)
    refused(FileFormatError, "of another shape", run, full=replace(SHAPE, mask=8))
    other = write_backbone(tmp_path / "other", unet=UNET | {"block_out_channels": [16, 16, 16, 16]})
    refused(InputError, "was trained on backbone [0-9a-f]{16}; --backbone .* is [0-9a-f]{16}", run, other)
    refused(FileFormatError, r"--from .*gmodiff\.pkl \(state_dict_unet\): .*of another shape", earlier / DAREG_FILE, other)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(earlier / DAREG_FILE, alone)
    refused(InputError, r"--from .*alone: gmodiff\.pkl not there", alone / DAREG_FILE)
    folded = tmp_path / "folded.safetensors"
    save_folded(assemble(open_backbone(str(backbone)), read_released(earlier), SHAPE), folded)
    refused(FileFormatError, "weights with its adapters folded in, expected adapters", folded)


def test_the_command_begins_with_a_run(data, backbone, earlier, tmp_path, capsys):
    """As far as the first thing that does not fit: the rank."""
    given = ["--data", str(data), "--out", str(tmp_path / "out"), "--backbone", str(backbone), "--perceptual", "pyramid"]
    code, _, said = run(["train", "sd21-onestep", *given, "--from", str(earlier)], capsys)
    assert code == 2
    assert f"--from {earlier / WEIGHTS} has adapters of rank 4, and --rank is 16: give the same, or other weights" in said
    assert "Traceback" not in said


def same(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(v, two[k]) for k, v in one.items())
    return one == two


def test_stopped_and_gone_on_is_the_same_as_never_stopped(store, dareg, backbone, tmp_path):
    recipe = small(FULL_ONE_STEP)

    def run(out: str, **more) -> dict:
        train(recipe, store, tmp_path / out, regressor=dareg, backbone=str(backbone), workers=0, say=lambda _: None, **more)
        return torch.load(tmp_path / out / CHECKPOINT, weights_only=True)

    whole = run("whole")
    run("parts", stop_after=3)
    parts = run("parts")
    assert parts["step"] == whole["step"] == 6
    assert all(torch.equal(v, parts["averaged"][k]) for k, v in whole["averaged"].items())
    for name in (DAREG_FILE, GMODIFF_FILE):
        once, twice = (torch.load(tmp_path / out / name, weights_only=True) for out in ("whole", "parts"))
        assert same(once, twice)
    counted = [v for k, v in twice["proj"].items() if k.endswith("num_batches_tracked")]
    assert counted == [6, 6]
    once, twice = (load_file(tmp_path / out / WEIGHTS) for out in ("whole", "parts"))
    assert same(once, twice)
    backbone_alone = [k for k in whole["network"] if k.endswith("mid_block.resnets.0.conv1.bias")]
    assert backbone_alone == []  # nothing of the backbone is kept


def test_computing_again_gives_the_same_gradients_and_takes_less(dareg, backbone, store):
    """Less is kept for the way back, and less is there at once, with what is computed again on that way."""
    batch = batches(store)

    def learned(recompute: bool) -> tuple[dict[str, torch.Tensor], int, int]:
        stage = begin(small(FULL_ONE_STEP, recompute=recompute), None, dareg, str(backbone))
        for parameter in stage.parameters():
            parameter.requires_grad_(False)
        for parameter in stage.learned():
            parameter.requires_grad_(True)
        kept = 0

        def keep(values: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += values.numel()
            return values

        with LiveBytes() as live:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
                loss, _ = stage(batch, 0)
            loss.backward()
        return {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}, kept, live.peak["cpu"]

    (plain, much, high), (again, little, low) = learned(False), learned(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert little < 0.5 * much
    assert low < 0.5 * high


def test_two_processes_train_together(data, dareg, backbone, tmp_path):
    """With all that is optional: the processes end with the same weights, and leave files that load."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    out = tmp_path / "run"
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port]
    places = ["--data", data, "--out", out, "--cache", tmp_path / "cache", "--regressor", dareg, "--backbone", backbone]
    settings = "--steps 2 --batch 2 --crop 64 --scenes 2 --save-every 2 --check-scenes 1 --rank 4 --threads 1 --workers 0"
    options = "--recompute --bf16 --adversarial 0.1 --rate 0.01 --perceptual pyramid"
    script = Path(__file__).with_name("small_sd21_command.py")
    done = subprocess.run(
        [*together, script, tmp_path, "train", "sd21-onestep", *map(str, places), *settings.split(), *options.split()],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert any(k.startswith("judge.") for k in one)
    learned = [v for k, v in one.items() if k.endswith(".parametrizations.weight.0.up")]
    assert all(v.isfinite().all() for v in learned)
    assert sum(bool(v.any()) for v in learned) > 0.9 * len(learned)  # zero before the first step
    system = assemble(open_backbone(str(backbone)), read_released(out), SHAPE)
    assert system.refine(torch.rand(3, 3, 64, 64), torch.tensor([1.0, 4.0, 16.0])).gain.isfinite().all()
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["check"]["refined_psnr_mu"] > 0


def test_judging_changes_nothing_and_copies_no_backbone(dareg, backbone, store, monkeypatch):
    recipe = small(FULL_ONE_STEP, bf16=True)
    stage = begin(recipe, None, dareg, str(backbone))
    before = {k: v.clone() for k, v in stage.named_parameters()} | {k: v.clone() for k, v in stage.named_buffers()}
    modes = [m.training for m in stage.modules()]
    averaged = {k: v + 1e-3 for k, v in stage.state_dict().items()}
    seen = {}

    def looked(batch):
        seen.update({k: v.clone() for k, v in stage.state_dict().items()}, recipe=stage.recipe, training=stage.training)
        return {"psnr": 1.0}

    monkeypatch.setattr(stage, "check", looked)
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("the system was copied"))
    assert check(stage, store, averaged) == {"psnr": 1.0}
    assert not seen.pop("recipe").bf16
    assert not seen.pop("training")
    assert all(torch.equal(v, averaged[k]) for k, v in seen.items())
    now = dict(stage.named_parameters()) | dict(stage.named_buffers())
    assert all(torch.equal(v, now[k]) for k, v in before.items())
    assert [m.training for m in stage.modules()] == modes
    assert stage.recipe is recipe


def test_a_run_goes_on_with_the_same_backbone_wherever_it_lies(store, dareg, backbone, tmp_path):
    recipe = small(FULL_ONE_STEP, steps=3)
    moved = tmp_path / "moved"
    shutil.copytree(backbone, moved)
    given = {"regressor": dareg, "workers": 0, "say": lambda _: None}
    train(recipe, store, tmp_path / "run", backbone=str(backbone), stop_after=2, **given)
    train(recipe, store, tmp_path / "run", backbone=str(moved), **given)
    config = json.loads((moved / "vae" / "config.json").read_text())
    (moved / "vae" / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    train(recipe, store, tmp_path / "run", backbone=str(moved), **given)
    file = next((moved / "vae").glob("*.safetensors"))
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-3}, file)
    with pytest.raises(InputError, match="was begun with backbone"):
        train(replace(recipe, steps=3), store, tmp_path / "run", backbone=str(moved), **given)


@pytest.mark.parametrize(("part", "broken"), [("scheduler", {"beta_start": None}), ("unet", {"block_out_channels": [32, 64]})])
def test_a_backbone_whose_configuration_is_broken_is_one_line(dareg, backbone, tmp_path, part, broken):
    shutil.copytree(backbone, tmp_path / "backbone")
    file = next((tmp_path / "backbone" / part).glob("*config.json"))
    config = json.loads(file.read_text()) | broken
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(FileFormatError, match="of no system that can be built") as error:
        begin(small(FULL_ONE_STEP), None, dareg, str(tmp_path / "backbone"))
    assert "\n" not in str(error.value)


def test_the_adversarial_gradient_turns_round(dareg, backbone, store):
    """What makes the judge better makes the generator worse at deceiving it: their gradients have opposite signs."""
    recipe = small(FULL_ONE_STEP, adversarial=1.0)
    stage = begin(recipe, None, dareg, str(backbone))
    batch = batches(store)
    _, parts = stage(batch, 0)
    _, _, latent, _ = stage._refined(batch)
    deceived = torch.nn.functional.softplus(stage.judge(latent)).mean()  # what the judge wants small, and the generator large
    adapter = next(m for m in stage.system.unet.modules() if parametrize.is_parametrized(m)).parametrizations.weight[0]
    through = torch.autograd.grad(parts["told_apart"], adapter.up)[0]
    straight = torch.autograd.grad(deceived, adapter.up)[0]
    assert straight.abs().max() > 0
    torch.testing.assert_close(through, -straight, rtol=1e-3, atol=1e-7)


def test_dists_is_taken_only_where_its_weights_are(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert perceptual_loss("auto") == "pyramid"
    with pytest.raises(GMODiffError, match="dists"):
        perceptual_loss("dists")


def test_dists_teaches_where_its_weights_are(store, dareg, backbone, monkeypatch, tmp_path):
    pytest.importorskip("piq")
    put_stand_ins("dists", monkeypatch, tmp_path)
    assert perceptual_loss("auto") == "dists"
    recipe = small(FULL_ONE_STEP, steps=2, perceptual="dists")
    stage = begin(recipe, None, dareg, str(backbone))
    batch = batches(store)
    _, parts = stage(batch, 0)
    assert 0 < float(parts["look"].detach()) < 1
    adapter = next(m for m in stage.system.gain_decoder.modules() if parametrize.is_parametrized(m)).parametrizations.weight[0]
    assert torch.autograd.grad(parts["look"], adapter.up)[0].abs().max() > 0
    out = train(recipe, store, tmp_path / "run", regressor=dareg, backbone=str(backbone), workers=0, say=lambda _: None)
    assert out.is_file()

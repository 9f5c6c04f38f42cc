"""The loop: plain steps of AdamW with averaged weights, a checkpoint that any kill leaves whole, a log of JSON lines.

A run goes on exactly where its checkpoint was written: batches, and what a stage draws for them, follow from their step. Started by
torchrun, the processes share every batch between them, and make the same steps as one would (but for the autoencoder, whose latents are
held near deviation 1 by each process among its own crops, for onestep, which weighs what is used among them, and for sd21-onestep, whose
batch norm sees those alone).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gmodiff.datasets.scene import fingerprint
from gmodiff.errors import GMODiffError, InputError, OutputError
from gmodiff.machine import held_alone
from gmodiff.train.crops import Batch, Batches, check_scene
from gmodiff.train.plot import plot_log
from gmodiff.train.recipes import Recipe
from gmodiff.train.scenes import SceneStore
from gmodiff.train.stage import Stage
from gmodiff.train.stages import begin
from gmodiff.writer import replacing

MOST_OVERFLOWS = 20
"""Steps in a row without a finite gradient after which a run ends."""
CHECKPOINT, LOG, PLOT, WEIGHTS = "checkpoint.pt", "log.jsonl", "log.png", "weights.safetensors"
LOG_EVERY = 50

Say = Callable[[str], None]


@dataclass(frozen=True)
class Team:
    """The processes that train together: torchrun's, or this one alone."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def join() -> Team:
        """Read what torchrun says; one process uses a GPU if there is one."""
        world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", local) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(device)  # what names no GPU must not all land on the first
        if world > 1:
            torch.distributed.init_process_group("nccl" if gpu else "gloo")
        return Team(rank, world, device)

    @property
    def leads(self) -> bool:
        """The one process that writes files."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are shared."""
        return nn.parallel.DistributedDataParallel(network) if self.world > 1 else network

    def leave(self) -> None:
        """End the group."""
        if self.world > 1:
            torch.distributed.destroy_process_group()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Rises linearly over the warm-up, then falls as a cosine to 1 % of the largest."""
    if step < recipe.warm_up:
        return recipe.rate * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def train(
    recipe: Recipe,
    store: SceneStore,
    out: Path,
    *,
    start: Path | None = None,
    regressor: Path | None = None,
    backbone: str | None = None,
    workers: int = 1,
    say: Say = print,
    stop_after: int | None = None,
) -> Path | None:
    """Train a stage to its end, going on from `out`'s checkpoint if there is one.

    Returns the file of averaged weights in the process that wrote it, None in the others of a team.

    start, regressor, backbone: weights, see `stages.begin`.   workers: processes that render and cut batches.
    stop_after: stop at this step as if killed after its checkpoint (for tests).
    Raises InputError where the checkpoint belongs to other settings, or a stage lacks its start.
    """
    team = Team.join()
    try:
        stage = begin(recipe, start, regressor, backbone)
        with _alone(out) if team.leads else nullcontext():
            return _train(team, stage, store, out, _given(store, start, regressor) | dict(stage.rests_on), workers, say, stop_after)
    finally:
        team.leave()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The run's folder, held by this process alone; the system lets go of it whatever ends the process."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = os.open(out, os.O_RDONLY) if os.name != "nt" else None  # Windows opens no folder, and nothing keeps two runs apart there
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    if held is None:
        yield
        return
    try:
        if not held_alone(held):
            raise InputError(f"{out}: another gmodiff train is writing there; wait for it, or give another --out")
        yield
    finally:
        os.close(held)


def _given(store: SceneStore, start: Path | None, regressor: Path | None) -> dict[str, str]:
    """What a run rests on beyond its recipe, by content."""
    files = {"start": start, "regressor": regressor}
    return {"pictures": store.digest} | {k: "none" if p is None else fingerprint("", {k: p}) for k, p in files.items()}


def _train(
    team: Team,
    stage: Stage,
    store: SceneStore,
    out: Path,
    inputs: dict[str, str],
    workers: int,
    say: Say,
    stop_after: int | None,
) -> Path | None:
    recipe = stage.recipe
    stage.share = (team.rank, team.world)
    stage.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = stage.learned()
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, recipe.rate, weight_decay=recipe.weight_decay)
    averaged = {k: v.detach().clone() for k, v in stage.state_dict().items()}
    first, spent = _resume(out, stage, optimiser, averaged, inputs)
    if first and team.leads:
        say(f"going on at step {first} of {recipe.steps}" if first < recipe.steps else f"finished already: {first} steps of {recipe.steps}")
    elif team.leads:
        slow = "" if store.is_full(recipe.scenes) else "; scenes are rendered when they first come up, so the first steps are slow"
        say(f"{recipe.steps} steps of {recipe.batch} crops of {recipe.crop_px} pixels, {recipe.scenes} scenes, rate {recipe.rate:g}{slow}")

    batches = _Told(Batches(store, recipe, (team.rank, team.world)))
    steps = range(first, recipe.steps if stop_after is None else min(stop_after, recipe.steps))
    # Spawned, not forked: a fork of a process whose OpenCV or OpenVINO has run threads waits for ever at the first use of them.
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
        multiprocessing_context="spawn" if workers else None,
    )
    log = _Log(out / LOG, first, team.leads)
    forward = team.wrap(stage)
    began = time.monotonic() - spent
    overflowed = 0
    for step, batch in zip(steps, loader, strict=True):
        if isinstance(batch, GMODiffError):
            raise batch
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        batch = {k: v.to(team.device, non_blocking=True) for k, v in batch.items()}
        loss, parts = forward(batch, step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        if torch.isfinite(norm):  # a batch that overflowed teaches nothing
            optimiser.step()
            overflowed = 0
        else:
            overflowed += 1
            if overflowed == MOST_OVERFLOWS:
                raise InputError(
                    f"the loss was not finite for {overflowed} steps, the last of them {step}: give a smaller --rate (now "
                    f"{recipe.rate:g}), or go on from an older --out"
                )
        decay = min(recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in stage.state_dict().items():
                averaged[name].lerp_(value, 1 - decay)
        done = step + 1
        log.add(step, {"loss": float(loss.detach()), **{k: float(v.detach()) for k, v in parts.items()}, "norm": float(norm)}, began)
        if (done % recipe.save_every == 0 or done == steps.stop) and team.leads:
            checked = check(stage, store, averaged)
            log.check(done, checked, time.monotonic() - began)
            say(f"step {done}/{recipe.steps}: " + ", ".join(f"{k} {v:.4g}" for k, v in checked.items()))
            _save(out, stage, optimiser, averaged, done, time.monotonic() - began, inputs, store.seed)
            plot_log(out / LOG, out / PLOT)
    if team.leads and not steps and not (out / WEIGHTS).is_file():
        _save_weights(out, stage, averaged, first, spent, store.seed)
    return out / WEIGHTS if team.leads else None


@torch.no_grad()
def check(stage: Stage, store: SceneStore, averaged: dict[str, Tensor]) -> dict[str, float]:
    """Means of the stage's figures, of the averaged weights on the scenes that steer; NaN counts for nothing."""
    found: dict[str, list[float]] = {}
    device = next(stage.parameters()).device
    with _holding(stage, averaged):
        for number in range(stage.recipe.check_scenes):
            batch = {k: v.to(device) for k, v in check_scene(store, number).items()}
            for name, value in stage.check(batch).items():
                found.setdefault(name, []).append(value)
    return {k: float(torch.tensor(v).nanmean()) for k, v in found.items()}


@contextmanager
def _holding(stage: Stage, averaged: dict[str, Tensor]) -> Iterator[None]:
    """Within, the stage holds the averaged weights, in use and in float32, as users run it; after, all is as before to the last bit.

    In place, and only what learns is kept meanwhile: a full-size system does not fit twice.
    """
    trained = {k: v.detach().clone() for k, v in stage.state_dict().items()}
    recipe, modes = stage.recipe, [(m, m.training) for m in stage.modules()]
    try:
        stage.load_state_dict(averaged)
        stage.recipe = replace(recipe, bf16=False)
        stage.eval()
        yield
    finally:
        stage.load_state_dict(trained)
        stage.recipe = recipe
        for module, training in modes:
            module.training = training


class _Told(Dataset["Batch | GMODiffError"]):
    """Batches, or the error instead: a worker that raised would wrap it in a page of its own."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | GMODiffError:
        try:
            return self._batches[step]
        except GMODiffError as error:
            return error


def _one_thread(_: int) -> None:
    """Workers that render in the background do not fight over cores with the network."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


# ---- files of a run -------------------------------------------------------------------------------------------------------


def _save(
    out: Path,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
    step: int,
    spent: float,
    inputs: dict[str, str],
    scene_seed: int,
) -> None:
    # The weights first: a kill in between leaves a checkpoint from which they are made again.
    _save_weights(out, stage, averaged, step, spent, scene_seed)
    state = {
        "recipe": json.dumps(stage.recipe.as_dict() | inputs, sort_keys=True),
        "step": step,
        "spent": spent,
        "network": stage.state_dict(),
        "averaged": averaged,
        "optimiser": optimiser.state_dict(),
    }
    with replacing(out / CHECKPOINT, force=True) as unfinished, unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _save_weights(out: Path, stage: Stage, averaged: dict[str, Tensor], step: int, spent: float, scene_seed: int) -> None:
    recipe, before = stage.recipe, stage.before
    unfinished = {k: v for k, v in before.get("unfinished", {}).items() if k != recipe.stage}
    if step < recipe.steps:
        unfinished[recipe.stage] = f"step {step} of {recipe.steps}"
    facts = {
        "unfinished": unfinished,
        "scene_seed": scene_seed,
        "steps": _added(before.get("steps", {}), recipe.stage, step),
        "spent": _added(before.get("spent", {}), recipe.stage, round(spent)),
        "recipe": before.get("recipe", recipe.as_dict()),  # the first
        "recipes": before.get("recipes", {}) | {recipe.stage: recipe.as_dict()},
        "data": before.get("data", {}) | {recipe.stage: recipe.data},
        "hardware": before.get("hardware", {}) | {recipe.stage: recipe.hardware},
        **stage.facts(),
    }
    with _holding(stage, averaged):
        stage.write(out / WEIGHTS, facts)


def _added(so_far: dict[str, int], stage: str, value: int) -> dict[str, int]:
    """A stage that began with weights of the same stage goes on counting."""
    return {**so_far, stage: so_far.get(stage, 0) + value}


def _resume(
    out: Path, stage: Stage, optimiser: torch.optim.Optimizer, averaged: dict[str, Tensor], inputs: dict[str, str]
) -> tuple[int, float]:
    """(first step to make, seconds spent so far)."""
    path = out / CHECKPOINT
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings = json.loads(state["recipe"])
    except Exception:
        raise InputError(f"{path}: not a whole checkpoint of this program; give another --out") from None
    now = json.loads(json.dumps(stage.recipe.as_dict() | inputs))
    different = [k for k in now if settings.get(k) != now[k] and k not in _MAY_DIFFER]
    if different:
        k = different[0]
        if k not in settings:
            raise InputError(f"{out} was begun by an older version, which had no {k}: give another --out, or --from its weights")
        again = f" and --from {out}" if k == "steps" else ""  # the rate falls over all of them, so other steps are another run
        what = f"{_OPTIONS.get(k, k)} {settings[k]!r}, now it is {now[k]!r}" if k not in _BY_CONTENT else f"other {_BY_CONTENT[k]} than now"
        raise InputError(f"{out} was begun with {what}: give the same settings, or another --out{again}")
    try:
        stage.load_state_dict(state["network"])
    except RuntimeError:
        raise InputError(f"{path} holds another network than this version trains: give another --out, or --from its weights") from None
    optimiser.load_state_dict(state["optimiser"])
    for name, value in state["averaged"].items():
        averaged[name].copy_(value)
    return int(state["step"]), float(state["spent"])


_OPTIONS = {"crop_px": "--crop", "rate": "--rate", "steps": "--steps", "batch": "--batch", "scenes": "--scenes", "seed": "--seed"}
_BY_CONTENT = {
    "pictures": "pictures, responses or seed of scenes (--data, --curves, --seed)",
    "start": "weights to begin with (--from)",
    "regressor": "weights of the regressor (--regressor)",
}
"""Of what a run rests on: how users give it, and what stands in a checkpoint as a hash."""

_MAY_DIFFER = ("command", "data", "hours", "hardware", "expected", "save_every", "check_scenes", "recompute")
"""Settings that do not change what a step does."""


class _Log:
    """JSON lines, one every LOG_EVERY steps (means since the last) and one per check; lines after the resumed step are dropped."""

    def __init__(self, path: Path, first: int, leads: bool) -> None:
        self._path, self._leads = path, leads
        self._sums: dict[str, float] = {}
        self._count = 0
        if not leads:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if line["step"] <= first] if path.is_file() else []
        with replacing(path, force=True) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, values: dict[str, float], began: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if (step + 1) % LOG_EVERY == 0:
            means = {k: round(v / self._count, 6) for k, v in self._sums.items()}
            self._write({"step": step + 1, "seconds": round(time.monotonic() - began, 1), **means})
            self._sums, self._count = {}, 0

    def check(self, step: int, values: dict[str, float], seconds: float) -> None:
        self._write(
            {"step": step, "seconds": round(seconds, 1), "check": {k: round(v, 5) if math.isfinite(v) else None for k, v in values.items()}}
        )

    def _write(self, line: dict[str, Any]) -> None:
        if self._leads:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            return  # the last line may be cut short by a kill

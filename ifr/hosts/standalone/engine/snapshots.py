"""Training checkpoints: everything needed to resume, with cvpods' structure and names."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifr.checkpoints import CheckpointFile, load_weights, save_checkpoint
from ifr.errors import CheckpointError
from ifr.hosts.standalone.engine.optimizer import load_state
from ifr.hosts.standalone.engine.trainer import Trainer

_REQUIRED = ("iteration", "seed", "batch_size", "optimizer", "random")


def save(
    path: Path, trainer: Trainer, *, iteration: int, batch_size: int, about: Mapping[str, Any], together: bool
) -> None:
    """Write a checkpoint after `iteration` iterations.

    With a moving average, "model" holds the average, for testing, and "ema" the trained weights. The position in the
    data is not stored: a batch is a function of seed, iteration and batch size.

    Args:
        path: the checkpoint file.
        trainer: the trainer, after `settle`.
        iteration: number of completed iterations.
        batch_size: images per iteration over all workers.
        about: what it says about the model, from `ifr.description.describe`.
        together: whether all workers call this and the first one writes; otherwise only this one does.

    Raises:
        CheckpointWriteError: the file cannot be written.
    """
    own = random_state(trainer.device)
    states = trainer.worker.gather(own) if together else [own]
    if together and not trainer.worker.is_first:
        return
    extras: dict[str, Any] = {
        "optimizer": trainer.optimizer,
        "scheduler": {
            "last_epoch": iteration,
            "base_lrs": [trainer.schedule.base] * len(trainer.optimizer.param_groups),
        },
        "iteration": iteration,
        "scaler": trainer.scaler.state_dict(),
        "seed": trainer.seed,
        "batch_size": batch_size,
        "random": states,
        **about,
    }
    if trainer.average is None:
        save_checkpoint(path, trainer.model, **extras)
    else:
        with trainer.average.in_model() as trained:
            extras["ema"] = {"updates": trainer.average.updates, "own": {key: trained[key].cpu() for key in trained}}
            save_checkpoint(path, trainer.model, **extras)


def resume(file: CheckpointFile, trainer: Trainer, *, batch_size: int) -> int:
    """Load a checkpoint written by `save` into a trainer; return the number of completed iterations.

    Args:
        file: the checkpoint.
        trainer: a new trainer of the same model.
        batch_size: images per iteration over all workers.

    Raises:
        CheckpointError: the checkpoint does not fit the model or the settings.
    """
    path, extras = file.path, file.extras
    if extras["batch_size"] != batch_size:
        raise CheckpointError(
            path,
            f"it was trained with {extras['batch_size']} images per iteration; this run has {batch_size}",
            "leave SOLVER.IMS_PER_BATCH and IMS_PER_DEVICE out, or start a new run in another OUTPUT_DIR",
        )
    load_weights(trainer.model, file, allow_backbone_only=False)
    try:
        load_state(trainer.optimizer, extras["optimizer"])
        if extras.get("scaler"):
            trainer.scaler.load_state_dict(extras["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            path,
            f"its optimizer state belongs to another model or to other groups of parameters ({error})",
            "keep the factors and weight decays of SOLVER.OPTIMIZER, which make the groups, or start a new run",
        ) from error
    average = extras.get("ema")
    if (average is None) != (trainer.average is None):
        enabled = f"SOLVER.EMA.ENABLED {average is not None}"
        raise CheckpointError(path, f"it was trained with {enabled}", f"set {enabled}")
    if trainer.average is not None and average is not None:
        trainer.average.resume(int(average["updates"]), average["own"])
    states, worker = extras["random"], trainer.worker
    if len(states) == worker.world_size and worker.rank < len(states):  # a saved failed step may have only one state
        restore_random_state(states[worker.rank], trainer.device)
    return int(extras["iteration"])


def check(file: CheckpointFile) -> None:
    """Check that a checkpoint has everything needed to resume.

    Raises:
        CheckpointError: an entry is missing.
    """
    missing = [name for name in _REQUIRED if name not in file.extras]
    if missing:
        raise CheckpointError(file.path, f"training cannot resume from it: it lacks {', '.join(missing)}")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all global random generators of this process."""
    _name, key, position, *_gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": {"key": torch.from_numpy(np.asarray(key).astype(np.int64)), "position": int(position)},
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the states that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    key, position = state["numpy"]["key"].numpy().astype(np.uint32), state["numpy"]["position"]
    np.random.set_state(("MT19937", key, position, 0, 0.0))


def set_random_seed(seed: int) -> None:
    """Seed all global random generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

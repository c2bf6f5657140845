"""Experiments that fail at a chosen step."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ifr.experiment import Experiment, load_experiment

Prepare = Callable[[nn.Module], None]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def faulty(prepare: Prepare) -> Callable[[str], Experiment]:
    """Return a loader of experiments that calls `prepare` on the model."""

    def load(folder: str) -> Experiment:
        experiment = load_experiment(folder)

        def build_model(config: Any) -> nn.Module:
            model = experiment.build_model(config)
            prepare(model)
            return model

        return dataclasses.replace(experiment, build_model=build_model)

    return load


def before_call(number: int, action: Callable[[], None], *, training: bool = True) -> Prepare:
    """Run `action` before the `number`-th batch of the model, from 1, in training or in evaluation."""
    calls = []

    def prepare(model: nn.Module) -> None:
        def count(module: nn.Module, inputs: Any) -> None:
            if model.training == training:
                calls.append(1)
                if len(calls) == number:
                    action()

        getattr(model, "backbone", model).register_forward_pre_hook(count)  # evaluation does not call a detector itself

    return prepare


def both(first: Prepare, second: Prepare) -> Prepare:
    """Prepare the model for two faults."""

    def prepare(model: nn.Module) -> None:
        first(model)
        second(model)

    return prepare


def signalled(number: int, kind: signal.Signals, *, training: bool = True) -> Prepare:
    """Send this process a signal in the `number`-th call."""
    return before_call(number, lambda: os.kill(os.getpid(), kind), training=training)


def changed_losses(number: int, change: Change) -> Prepare:
    """Change the losses of the `number`-th training step."""
    calls = []

    def alter(module: nn.Module, inputs: Any, losses: Any) -> Any:
        if not module.training:
            return losses
        calls.append(1)
        return change(losses) if len(calls) == number else losses

    def prepare(model: nn.Module) -> None:
        model.register_forward_hook(alter)

    return prepare


def write_experiment(original: Path, folder: Path, fault: str) -> Path:
    """Copy an experiment so that it runs `fault`, Python code, before every training step; `step` counts from 1.

    Unlike a hook in this process, it also runs in the workers of a job.
    """
    folder.mkdir(parents=True)
    (folder / "config.py").write_text((original / "config.py").read_text())
    body = fault.replace("\n", "\n        ")
    (folder / "net.py").write_text(
        f"""
import os
import signal

import torch

from ifr.hosts import build_mask_rcnn


def build_model(config):
    model = build_mask_rcnn(config)
    steps = []

    def act(module, inputs):
        if not module.training:
            return
        steps.append(1)
        step, rank = len(steps), int(torch.distributed.is_initialized() and torch.distributed.get_rank())
        {body}

    model.register_forward_pre_hook(act)
    return model
"""
    )
    return folder

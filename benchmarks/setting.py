"""The block and the region features that a benchmark measures: random ones, or those of a trained model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from measure import timed
from torch import Tensor, nn
from torch.nn import functional

from ifr.data.loader import evaluation_loader, open_test_sets
from ifr.experiment import build_model, load_experiment
from ifr.mask_head import MaskHead
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import Anderson

CHANNELS, SIDE, STEPS = 256, 14, 15


class Setting:
    """A block, its input features x (N, C, H, W), a gradient dL/dz, and the four convolutions that it replaces."""

    def __init__(self, name: str, block: RefinementBlock, x: Tensor, gradient: Tensor) -> None:
        self.name, self.block, self.x, self.gradient, self.device = name, block, x, gradient, x.device
        width = x.shape[1]
        layers = [part for _ in range(4) for part in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        self.convolutions = nn.Sequential(*layers).to(x.device)
        self.zero = torch.zeros_like(x)
        self.state_bytes = x.numel() * x.element_size()

    def seconds_of_f(self, repeats: int) -> float:
        with torch.no_grad():
            f = self.block.at(self.x)
            return timed(lambda: [f(self.zero) for _ in range(repeats)], self.device) / repeats


def random_setting(regions: int, device: torch.device, channels: int = CHANNELS) -> Setting:
    torch.manual_seed(0)
    block = RefinementBlock(channels).to(device)
    x = torch.randn(regions, channels, SIDE, SIDE, device=device)
    return Setting("random weights", block, x, x)


def trained_head(experiment: Path, weights: Path, device: torch.device) -> tuple[Any, nn.Module, MaskHead]:
    """Return the configuration, the trained model and its implicit mask head."""
    model = build_model(experiment, weights, device)
    heads = (part for part in model.modules() if isinstance(part, MaskHead) and isinstance(part.refinement, Implicit))
    return load_experiment(experiment).config, model, next(heads)


@torch.no_grad()
def regions_of_test_set(config: Any, model: nn.Module, head: MaskHead, most: int) -> tuple[Tensor, Tensor]:
    """Return the features (N, C, H, W) and classes (N,) of the first detections in the experiment's first test set."""
    features: list[Tensor] = []
    classes: list[Tensor] = []

    def record(_: nn.Module, inputs: Any) -> None:
        features.append(inputs[0])
        classes.append(inputs[1])

    handle = head.register_forward_pre_hook(record)
    loader = iter(evaluation_loader(config, next(iter(open_test_sets(config, None).values()))))
    for batch in itertools.takewhile(lambda _: sum(map(len, features)) < most, loader):
        model(batch)
    handle.remove()
    return torch.cat(features)[:most].clone(), torch.cat(classes)[:most].clone()


def trained_setting(experiment: Path, weights: Path, regions: int, device: torch.device) -> Setting:
    """Take the block of a trained model and the features of its first detections in the experiment's first test set.

    The gradient is that of the mean binary cross-entropy between the masks and themselves, thresholded.
    """
    config, model, head = trained_head(experiment, weights, device)
    x, _ = regions_of_test_set(config, model, head, regions)
    with torch.no_grad():
        z = Anderson(100, 1e-6).solve(head.repeat_block.at(x), torch.zeros_like(x)).z
    z.requires_grad_()
    logits = head.predictor(functional.relu(head.deconv(z)))
    (gradient,) = torch.autograd.grad(functional.softplus(-logits.abs()).mean(), z)
    return Setting(str(weights), head.repeat_block, x, gradient)

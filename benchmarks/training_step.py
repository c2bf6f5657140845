"""Compare a training step of the standalone detector with one of torchvision's Mask R-CNN, in seconds and memory.

Both are ResNet-50-FPN detectors of benchmarks/detector.py with random weights and SGD, and get the same picture and
objects, as many samples for the RPN and the heads, and as many sampling points in ROIAlign; with more than 128 objects
also as many mask regions. They run alternately; medians are printed.
Then the same step with the other mask heads, as ratios to the step with four convolutions. Implicit heads take all
15 + 15 steps; "2021" has the solver of the published code in both directions. Memory is the largest resident memory of
a process that does two steps and nothing else.

    python benchmarks/training_step.py [--repeats 9] [--threads 2] [--objects 10 160] [--heads conv implicit]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detector import own_model, torchvision_model
from measure import timed
from torch import Tensor

from ifr.data.annotations import Annotations
from ifr.data.masks import polygons_to_mask
from ifr.hosts.standalone.engine.trainer import Trainer

CPU = torch.device("cpu")
ALL_STEPS = {"MODEL.ROI_MASK_HEAD.F_TOL": 0.0, "MODEL.ROI_MASK_HEAD.B_TOL": 0.0}  # random weights converge early
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("conv", {}),
    "explicit": ("explicit", {}),
    "implicit": ("implicit", ALL_STEPS),
    "2021": ("implicit", {**ALL_STEPS, "MODEL.ROI_MASK_HEAD.SOLVER": "broyden-published"}),
}
SAMPLING = {f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO": 2 for head in ("BOX", "MASK")}  # torchvision's
IMPLICIT_PHASE = 10**6  # an iteration after the warm-up by weight sharing

Step = Callable[[], Any]


def objects_in(count: int, height: int, width: int) -> tuple[Tensor, Tensor, list[list[np.ndarray]]]:
    """Return boxes (n, 4), classes (n,) and polygons of diamonds of 32 to 160 pixels."""
    side = 32 + 128 * torch.rand(count, 2)
    low = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    boxes = torch.cat((low, low + side), dim=1)
    polygons = []
    for x0, y0, x1, y1 in boxes.tolist():
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        polygons.append([np.array([x, y0, x1, y, x, y1, x0, y])])
    return boxes, torch.randint(0, 90, (count,)), polygons


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=0.0,  # so that all steps have the same proposals, and take the same time
        momentum=0.9,
        weight_decay=1e-4,
        fused=True,
    )


def own_step(head: str, image: Tensor, objects: int) -> tuple[Step, torch.nn.Module]:
    refinement, settings = HEADS[head]
    model = own_model(CPU, refinement, {**settings, **SAMPLING})
    boxes, classes, polygons = objects_in(objects, *image.shape[-2:])
    batch = [{"image": image, "instances": Annotations(boxes, classes, polygons)}]
    trainer = Trainer(model, sgd(model), schedule=lambda _: 0.0)

    def step() -> None:
        trainer.step(IMPLICIT_PHASE, batch)
        trainer.settle()

    return step, model


def torchvision_step(image: Tensor, objects: int) -> Step:
    height, width = image.shape[-2:]
    model = torchvision_model(min(height, width)).train()
    model.rpn._post_nms_top_n["training"] = 1000  # as ours
    boxes, classes, polygons = objects_in(objects, height, width)
    masks = np.stack([polygons_to_mask(polygon, height, width) for polygon in polygons])
    target = {"boxes": boxes, "labels": classes + 1, "masks": torch.from_numpy(masks).to(torch.uint8)}
    scaled, optimizer = image.flip(0).float() / 255, sgd(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model([scaled], [target]).values()).backward()
        optimizer.step()

    return step


def mask_head_seconds(model: Any, step: Step) -> list[float]:
    """Seconds of the mask head's forward and backward pass in one step, by running them again on its regions."""
    head, seen = model.roi_heads.mask_head, []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    step()
    hook.remove()
    regions = torch.cat(seen).requires_grad_()
    return [timed(lambda: head(regions).sum().backward(), CPU) for _ in range(3)]


def report(objects: int, image: Tensor, repeats: int, heads: list[str]) -> None:
    own, model = own_step("conv", image, objects)
    other = torchvision_step(image, objects)
    seconds: dict[str, list[float]] = {"own": [], "torchvision": []}
    for number in range(repeats + 1):
        for name, step in (("own", own), ("torchvision", other)):
            elapsed = timed(step, CPU)
            if number:  # the first allocates
                seconds[name].append(elapsed)
    ours, theirs = (statistics.median(values) for values in seconds.values())
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"{objects} objects: own {ours:.2f} s, torchvision {theirs:.2f} s, ratio {statistics.median(ratios):.3f}")
    conv = ours
    for head in heads:
        if head != "conv":
            step, model = own_step(head, image, objects)
            step()
            ours = statistics.median(timed(step, CPU) for _ in range(3))
        part = statistics.median(mask_head_seconds(model, own if head == "conv" else step))
        print(f"  mask head {head:9s} {ours:6.2f} s, {ours / conv:.2f} of conv; the head itself {part / ours:.0%}")


def peak(name: str, objects: int, size: tuple[int, int]) -> float:
    """Largest resident memory in MB of a process that does two steps."""
    command = [sys.executable, __file__, "--peak", name, "--objects", str(objects), "--size", *map(str, size)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 160])
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, *args.size), dtype=torch.uint8)
    if args.peak:
        name, objects = args.peak, args.objects[0]
        step = torchvision_step(image, objects) if name == "torchvision" else own_step(name, image, objects)[0]
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    print(f"torch {torch.__version__}, {args.threads} threads of a CPU, {args.size[0]} x {args.size[1]} pixels")
    for objects in args.objects:
        ours, theirs = (peak(name, objects, args.size) for name in ("conv", "torchvision"))
        print(f"{objects} objects: own {ours:.0f} MB, torchvision {theirs:.0f} MB, ratio {ours / theirs:.3f}")
        report(objects, image, args.repeats, args.heads)


if __name__ == "__main__":
    main()

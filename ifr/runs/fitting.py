"""Fit an experiment's settings to a data set and a machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ifr.data.anchors import Anchors, fit_anchors
from ifr.data.objects import Objects, resized
from ifr.data.transforms import ResizeShortestEdge
from ifr.errors import UserError
from ifr.runs.suitability import anchor_settings, roomy

_STEP = 32  # pixels; lengths of the shorter edge are multiples, as the network pads images to them
_SCALES = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
_COVERED, _WELL_COVERED = 0.97, 0.75  # shares of the objects at IoU 0.5 and 0.7 for which images are large enough
_MOST_ON_CPU, _MOST_ON_GPU = 640 * 640, 800 * 1333  # pixels of an image at network size
_BATCH_ON_CPU = 500_000  # pixels; as much as three images of the digits' size
_WORK_OF_A_CORE = 180e6  # pixels; about a quarter of an hour with the network of the digits, four cores at most
_HEADS_ON_CPU = 35_000  # pixels; the heads of an image take as long as the backbone on so many
_EPOCHS, _LEAST_ON_GPU = 12, 16_000  # passes over the data as for COCO; images of a short run
_MOST_EPOCHS = 200  # a few pictures are overfitted well before
_FOR_AN_IMAGE = 2**32  # bytes of GPU memory for 800 x 1333 pixels in training
_PROPOSALS = 4  # for each object of the fullest image


@dataclass(frozen=True)
class Machine:
    """What training runs on: GPUs, their memory in bytes, and CPU cores."""

    gpus: int
    memory: int
    cores: int

    @classmethod
    def this(cls) -> "Machine":
        """Return this machine."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        memory = torch.cuda.get_device_properties(0).total_memory if gpus else 0
        return cls(
            gpus, memory, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen together, and why."""

    reason: str
    settings: Mapping[str, Any]


def fit(base: Any, objects: Objects, machine: Machine) -> list[Choice]:
    """Choose the settings of an experiment for the objects of its training data.

    Args:
        base: the settings that the experiment starts from; its schedule is stretched.
        objects: those of the training data, in pixels of the pictures.
        machine: where it will train.
    """
    edge, anchors, seen = _scale(base, objects, machine)
    area = float(np.median(seen.images.prod(1)))
    batch = _batch(area, len(objects.images), machine)
    return [
        _pipelines(base, edge, seen),
        _anchors(anchors, seen),
        _caps(base, seen),
        _batch_settings(base, batch, machine, area),
        _schedule(base, batch, len(objects.images), area, machine),
    ]


def _scale(base: Any, objects: Objects, machine: Machine) -> tuple[ResizeShortestEdge, Anchors, Objects]:
    """Choose the least scale of the pictures at which anchors cover the objects well; fit the anchors.

    The search starts at the size of the base's images, but between half and twice the pictures' own; what the machine
    can take limits it.
    """
    native = float(np.median(objects.images.min(1)))
    most = _MOST_ON_GPU if machine.gpus else _MOST_ON_CPU
    limit = (most / float(np.median(objects.images.prod(1)))) ** 0.5
    least = min(max(_tested_edge(base) / native, _SCALES[0]), 2.0)
    for factor in [each for each in (least, *_SCALES) if least <= each <= limit] or [limit]:
        length = max(round(native * factor / _STEP), 1) * _STEP
        edge = ResizeShortestEdge((length,), 2 * length, "choice")
        seen = resized(objects, edge)
        anchors = fit_anchors(seen.boxes, seen.image_sizes)
        best = anchors.best_overlap(seen.boxes, seen.image_sizes)
        if (best >= 0.5).mean() >= _COVERED and (best >= 0.7).mean() >= _WELL_COVERED:
            break
    return edge, anchors, seen


def _pipelines(base: Any, edge: ResizeShortestEdge, seen: Objects) -> Choice:
    """Resize as chosen; training draws among as many lengths as in the base, in the same proportions."""
    length, tested = edge.middle(), _tested_edge(base)
    drawn = [settings["short_edge_length"] for name, settings in base.INPUT.AUG.TRAIN_PIPELINES if _resizes(name)]
    if not drawn:
        raise UserError("the base has no ResizeShortestEdge in INPUT.AUG.TRAIN_PIPELINES", "choose another --base")
    lengths = [drawn[0]] if isinstance(drawn[0], int) else list(drawn[0])
    scaled = sorted({round(each * length / tested / 8) * 8 for each in lengths})

    def resize(short: Any) -> tuple[str, dict[str, Any]]:
        return "ResizeShortestEdge", {"short_edge_length": short, "max_size": edge.max_size, "sample_style": "choice"}

    steps = [
        resize(tuple(scaled)) if _resizes(name) else (str(name), dict(settings))
        for name, settings in base.INPUT.AUG.TRAIN_PIPELINES
    ]
    flips = " Take out RandomFlip if left and right differ." if "RandomFlip" in dict(steps) else ""
    low, middle, high = np.percentile(seen.sizes, (5, 50, 95))
    return Choice(
        f"Objects are {middle:.0f} pixels large in the resized images, 90 % of them {low:.0f} to {high:.0f}." + flips,
        {
            "INPUT.AUG.TRAIN_PIPELINES": tuple(steps),
            "INPUT.AUG.TEST_PIPELINES": (resize(length),),
        },
    )


def _anchors(anchors: Anchors, seen: Objects) -> Choice:
    best = anchors.best_overlap(seen.boxes, seen.image_sizes)
    return Choice(
        f"Anchors cover {(best >= 0.5).mean():.1%} of the objects at IoU 0.5, {(best >= 0.7).mean():.1%} at 0.7.",
        anchor_settings(anchors),
    )


def _caps(base: Any, seen: Objects) -> Choice:
    """Raise what limits detections and samples of an image where it has more objects than those of the base."""
    most, many = int(seen.counts.max()), float(np.percentile(seen.counts, 75))
    rpn, heads = base.MODEL.RPN, base.MODEL.ROI_HEADS
    proposals, samples = _PROPOSALS * roomy(most), _even(many / float(heads.POSITIVE_FRACTION))
    raised: dict[str, int] = {"TEST.DETECTIONS_PER_IMAGE": roomy(most)}
    for key, old, new in (
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", rpn.PRE_NMS_TOPK_TRAIN, 2 * proposals),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", rpn.PRE_NMS_TOPK_TEST, 2 * proposals),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", rpn.POST_NMS_TOPK_TRAIN, proposals),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", rpn.POST_NMS_TOPK_TEST, proposals),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", rpn.BATCH_SIZE_PER_IMAGE, min(4 * _even(many), 256)),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", heads.BATCH_SIZE_PER_IMAGE, min(samples, 128)),
    ):
        if new > old:
            raised[key] = new
    return Choice(f"An image has {np.median(seen.counts):.0f} objects in the median, and at most {most}.", raised)


def _batch_settings(base: Any, batch: int, machine: Machine, area: float) -> Choice:
    workers = max(machine.gpus, 1)
    rate = float(base.SOLVER.OPTIMIZER.BASE_LR) * batch / int(base.SOLVER.IMS_PER_BATCH)
    where = f"{machine.gpus} GPUs of {machine.memory / 2**30:.0f} GiB" if machine.gpus else f"{machine.cores} CPU cores"
    return Choice(
        f"An iteration takes {batch} images of {area / 1e6:.2f} million pixels, on {where}; the learning rate grows "
        "with the batch.",
        {
            "SOLVER.IMS_PER_BATCH": batch,
            "SOLVER.IMS_PER_DEVICE": batch // workers,
            "SOLVER.OPTIMIZER.BASE_LR": float(f"{rate:.3g}"),
        },
    )


def _batch(area: float, images: int, machine: Machine) -> int:
    """Return the images of an iteration: a power of 2 for each worker, and no more than the data set has."""
    workers = max(machine.gpus, 1)
    fitting = machine.memory / _FOR_AN_IMAGE * _MOST_ON_GPU / area if machine.gpus else _BATCH_ON_CPU / area
    each = min(max(fitting, 1), 16 if machine.gpus else 4, max(images // workers, 1))
    return 2 ** int(np.log2(each)) * workers


def _schedule(base: Any, batch: int, images: int, area: float, machine: Machine) -> Choice:
    """Stretch the schedule of the base over as many images as the data need, or the CPU can take in its time."""
    old = base.SOLVER.LR_SCHEDULER
    work = _WORK_OF_A_CORE * min(machine.cores, 4) / (area + _HEADS_ON_CPU)
    if machine.gpus:
        work = min(max(_EPOCHS * images, _LEAST_ON_GPU), int(old.MAX_ITER) * int(base.SOLVER.IMS_PER_BATCH))
    length = max(round(min(work, _MOST_EPOCHS * images) / batch / 100), 3) * 100
    stretch = length / int(old.MAX_ITER)
    reason = f"{length} iterations are {length * batch / images:.3g} passes over {images} images"
    settings: dict[str, Any] = {
        "SOLVER.LR_SCHEDULER.MAX_ITER": length,
        "SOLVER.LR_SCHEDULER.STEPS": tuple(round(step * stretch) for step in old.STEPS),
        "SOLVER.LR_SCHEDULER.WARMUP_ITERS": min(int(old.WARMUP_ITERS), length // 20),
        "SOLVER.CHECKPOINT_PERIOD": length // 5,
    }
    if base.SOLVER.EPOCHS:
        settings["SOLVER.EPOCHS"] = 0.0  # MAX_ITER counts
    if base.TEST.EVAL_PERIOD:
        settings["TEST.EVAL_PERIOD"] = max(1, round(base.TEST.EVAL_PERIOD * stretch))
    head = base.MODEL.ROI_MASK_HEAD
    if base.MODEL.MASK_ON and head.REFINEMENT == "implicit" and head.PRETRAINED_STEPS:
        all_warmup = head.PRETRAINED_STEPS >= old.MAX_ITER  # as in a base with another mask head
        first = length // 3 if all_warmup else round(head.PRETRAINED_STEPS * stretch)
        settings["MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS"] = first
        reason += f"; in the first {first} the mask head applies its block a fixed number of times, afterwards it "
        reason += "solves for the equilibrium"
    return Choice(f"{reason}.", settings)


def _tested_edge(base: Any) -> int:
    steps = [settings for name, settings in base.INPUT.AUG.TEST_PIPELINES if _resizes(name)]
    if not steps:
        raise UserError("the base has no ResizeShortestEdge in INPUT.AUG.TEST_PIPELINES", "choose another --base")
    return ResizeShortestEdge(**steps[0]).middle()


def _resizes(name: Any) -> bool:
    return name == "ResizeShortestEdge"


def _even(count: float) -> int:
    """Round up to a multiple of 16."""
    return -(-int(count) // 16) * 16

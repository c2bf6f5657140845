"""Retrain the mask head of a frozen torchvision Mask R-CNN: its own four convolutions against IFR's head.

    python benchmarks/torchvision_heads.py --output DIR [--data DIR] [--seeds 1 2 3]

One detector learns the digits with torchvision's own mask head. Everything but the mask head is then frozen. For each
seed both heads start from new weights and train equally long, on the same images in the same order, with the same
optimizer and learning rate. The table has, for digits_val, the mask AP of the detections and the mean IoU of the masks
that the heads predict in the ground-truth boxes for the true classes.

The command can be stopped and started again: training continues at its last checkpoint, and what is complete is left
alone. It prints the table of what is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image
from torchvision.transforms import v2

from ifr.data.digits import SIDE, make_digits
from ifr.hosts.standalone.evaluation.coco_metrics import coco_metrics
from ifr.hosts.standalone.evaluation.mask_quality import mask_iou
from ifr.hosts.torchvision import follow_training, replace_mask_head
from ifr.refine import Implicit
from ifr.solvers import GMRES, Broyden

CHANNELS, CLASSES, BATCH = 64, 11, 4
HEADS = ("own", "implicit")
RATE = 1e-3
EVERY = 25  # iterations from one checkpoint to the next


class Digits:
    """A split of the digits: images (3, H, W) in [0, 1] with torchvision's targets, and the annotations."""

    def __init__(self, root: Path, split: str) -> None:
        folder = root / "digits"
        file = folder / "annotations" / f"instances_{split}.json"
        data = CocoDetection(
            folder / split, file, transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, True)])
        )
        self.ids = list(data.ids)
        self.samples = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "masks"))
        self.truth: dict[str, Any] = json.loads(file.read_text())

    def batch(self, indices: list[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images, targets = zip(*(self.samples[index] for index in indices), strict=True)
        return list(images), list(targets)


def build_detector() -> MaskRCNN:
    norm = partial(nn.GroupNorm, 16)
    body = resnet18(weights=None, norm_layer=norm, zero_init_residual=True)
    layers = {f"layer{k}": str(k - 1) for k in (1, 2, 3, 4)}
    return MaskRCNN(
        BackboneWithFPN(body, layers, [64, 128, 256, 512], CHANNELS, norm_layer=norm),
        min_size=SIDE,
        max_size=2 * SIDE,
        rpn_anchor_generator=AnchorGenerator(((24,), (36,), (50,), (68,), (96,)), ((1.6,),) * 5),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        box_head=FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 2, [256], norm_layer=norm),
        box_predictor=FastRCNNPredictor(256, CLASSES),
        box_batch_size_per_image=64,
        box_detections_per_img=20,
        mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES),
    )


def new_head(model: MaskRCNN, kind: str) -> nn.ModuleList:
    """Give a model a mask head with new weights, either torchvision's or IFR's; return what is trained."""
    if kind == "own":
        model.roi_heads.mask_head = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
        model.roi_heads.mask_predictor = MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES)
    else:
        replace_mask_head(model, Implicit(Broyden(7), adjoint=GMRES(7)))
    return nn.ModuleList([model.roi_heads.mask_head, model.roi_heads.mask_predictor])


def train(
    model: MaskRCNN, part: nn.Module, losses: tuple[str, ...], data: Digits, seed: int, length: int, file: Path
) -> None:
    """Train a part of the model for `length` iterations, from the last checkpoint in `file`, if there is one."""
    model.requires_grad_(False).train()
    part.requires_grad_(True)
    optimizer = torch.optim.AdamW(part.parameters(), RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, length + 1)
    follow_training(model, explicit_iterations=length * 3 // 10, iteration=lambda: schedule.last_epoch)
    if file.exists():
        state = torch.load(file, weights_only=True)
        for name, owner in (("part", part), ("optimizer", optimizer), ("schedule", schedule)):
            owner.load_state_dict(state[name])
    while schedule.last_epoch < length:
        iteration = schedule.last_epoch
        torch.manual_seed(1_000_000 * seed + iteration)  # the images and torchvision's samples, also after a restart
        batch = data.batch(torch.randint(len(data.ids), (BATCH,)).tolist())
        found = model(*batch)
        loss = torch.stack([found[name] for name in losses or found]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if schedule.last_epoch % EVERY == 0 or schedule.last_epoch == length:
            owners = (("part", part), ("optimizer", optimizer), ("schedule", schedule))
            torch.save({name: owner.state_dict() for name, owner in owners}, file.with_suffix(".part"))
            os.replace(file.with_suffix(".part"), file)
            print(f"{time.strftime('%H:%M:%S')} {file.stem}: {schedule.last_epoch} of {length}, {loss:.3f}", flush=True)


@torch.no_grad()
def measure(model: MaskRCNN, data: Digits) -> dict[str, float]:
    """Return mask AP, box AP and the mean mask IoU in the ground-truth boxes, in percent."""
    model.eval()
    results, overlaps = [], []
    for index, image_id in enumerate(data.ids):
        (image,), (target,) = data.batch([index])
        (found,) = model([image])
        for box, label, score, mask in zip(
            *(found[key] for key in ("boxes", "labels", "scores", "masks")), strict=True
        ):
            encoded = coco_mask.encode(np.asfortranarray((mask[0] >= 0.5).numpy()))
            corner, size = box[:2], box[2:] - box[:2]
            result = {"image_id": image_id, "category_id": int(label), "bbox": [*corner.tolist(), *size.tolist()]}
            results.append({**result, "score": float(score), "segmentation": encoded})
        overlaps += mask_iou(masks_in(model, image, target), target["masks"].bool()).tolist()
    ap = {kind: coco_metrics(data.truth, results, kind)["AP"] for kind in ("segm", "bbox")}
    return {"mask AP": ap["segm"], "mask IoU": 100 * statistics.mean(overlaps), "box AP": ap["bbox"]}


def masks_in(model: MaskRCNN, image: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Return the masks (n, H, W) bool that the head predicts in the ground-truth boxes for the true classes."""
    images, _ = model.transform([image])
    boxes = target["boxes"].as_subclass(Tensor).float()  # the network's size is the image's
    roi_heads = model.roi_heads
    regions = roi_heads.mask_roi_pool(model.backbone(images.tensors), [boxes], images.image_sizes)
    logits = roi_heads.mask_predictor(roi_heads.mask_head(regions))
    (masks,) = maskrcnn_inference(logits, [target["labels"]])
    return paste_masks_in_image(masks, boxes, image.shape[-2:])[:, 0] >= 0.5


def table(output: Path, seeds: list[int]) -> str:
    """Return the results of the seeds that are complete for both heads."""
    found = {path.stem: json.loads(path.read_text()) for path in output.glob("*_seed_*.json")}
    complete = [seed for seed in seeds if all(f"{head}_seed_{seed}" in found for head in HEADS)]
    missing = [str(seed) for seed in seeds if seed not in complete]
    lines = [
        "| seed | own: mask AP | own: mask IoU | implicit: mask AP | implicit: mask IoU |",
        "|---|---|---|---|---|",
    ]
    rows = {seed: [found[f"{h}_seed_{seed}"][m] for h in HEADS for m in ("mask AP", "mask IoU")] for seed in complete}
    lines += [f"| {seed} | " + " | ".join(f"{value:.1f}" for value in row) + " |" for seed, row in rows.items()]
    if rows:
        means = [statistics.mean(column) for column in zip(*rows.values(), strict=True)]
        lines.append("| mean | " + " | ".join(f"{value:.1f}" for value in means) + " |")
    return "\n".join([*lines, *([f"\nNot complete: seeds {', '.join(missing)}."] if missing else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder with the digits, made if missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--detector-iterations", type=int, default=1000)
    parser.add_argument("--head-iterations", type=int, default=400)
    parser.add_argument("--images", type=int, nargs=2, default=(1500, 200), help="images for training and measuring")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    output, lengths = arguments.output, (arguments.detector_iterations, arguments.head_iterations)
    output.mkdir(parents=True, exist_ok=True)
    make_digits(arguments.data, train=arguments.images[0], val=arguments.images[1])
    training, validation = Digits(arguments.data, "train"), Digits(arguments.data, "val")
    torch.manual_seed(0)
    detector = build_detector()
    train(detector, detector, (), training, 0, lengths[0], output / "detector.pth")
    weights = detector.state_dict()
    for seed in arguments.seeds:
        for kind in HEADS:
            name = f"{kind}_seed_{seed}"
            result = output / f"{name}.json"
            if result.exists():
                continue
            model = build_detector()
            model.load_state_dict(weights)
            torch.manual_seed(seed)
            head = new_head(model, kind)
            train(model, head, ("loss_mask",), training, seed, lengths[1], output / f"{name}.pth")
            found = {
                **measure(model, validation),
                "iterations": lengths[1],
                "torchvision": metadata.version("torchvision"),
            }
            result.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found, flush=True)
    print(table(output, arguments.seeds))


if __name__ == "__main__":
    main()

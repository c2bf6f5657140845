"""Compare the time per stage of the standalone detector with torchvision's Mask R-CNN.

Both have the same architecture (ResNet-50-FPN, stride in the 3x3 convolution, FrozenBN, four mask convolutions), random
weights, the same image and the same number of proposals and detections. They run alternately; medians are printed.

    python benchmarks/detector.py [--device cuda] [--repeats 5] [--threads 2]
"""

import argparse
import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import FrozenBatchNorm2d

from ifr.hosts.standalone import RCNNFPNConfig, build_mask_rcnn
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.runs.settings import use_tf32

DETECTIONS = 100
CANDIDATES = 3000  # scored boxes that enter the final NMS
STAGES = ("preprocess", "backbone", "rpn", "box", "mask", "paste")
COMPARED = ("preprocess", "backbone", "rpn", "box", "paste")


class Clock:
    """Records seconds per stage; each call appends the time since the previous call, when `device` has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.start()

    def __call__(self, stage: str) -> None:
        before = self.last
        self.start()
        self.seconds[stage].append(self.last - before)

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = time.perf_counter()

    def medians(self) -> dict[str, float]:
        return {stage: statistics.median(values) for stage, values in self.seconds.items()}


def tame(model: nn.Module) -> None:
    """Scale down the residual branches, so that activations stay in a normal range with random weights."""
    for name, module in model.named_modules():
        if name.endswith("bn3") and isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.2)


def own_model(device: torch.device, refinement: str = "conv", more: Mapping[str, Any] | None = None) -> RCNN:
    config = RCNNFPNConfig()
    settings = {
        "MODEL.DEVICE": str(device),
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.ROI_HEADS.NUM_CLASSES": 90,
        "MODEL.ROI_MASK_HEAD.REFINEMENT": refinement,
        **(more or {}),
    }
    config.merge_from_list([part for pair in settings.items() for part in pair])
    model = build_mask_rcnn(config).eval()
    tame(model)
    return model


def torchvision_model(short_edge: int) -> MaskRCNN:
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    model = MaskRCNN(backbone, num_classes=91, min_size=short_edge, max_size=1333).eval()
    tame(model)
    return model


def calibrate_own(model: RCNN, batch: list[dict[str, Any]]) -> None:
    """Set the score threshold that lets `CANDIDATES` boxes into NMS."""
    images = model.preprocess(batch)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(features, images.sizes)
    heads = model.roi_heads
    crops = heads.box_pooler([features[name] for name in heads.in_features], [p.boxes for p in proposals])
    scores = heads.stages[0](crops, [p.boxes for p in proposals]).logits.softmax(-1)[:, :-1].flatten()
    threshold = float(scores.topk(CANDIDATES).values[-1])
    heads.detection_filter = dataclasses.replace(heads.detection_filter, score_threshold=threshold)


def calibrate_torchvision(model: MaskRCNN, image: torch.Tensor) -> None:
    images, _ = model.transform([image])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    heads.score_thresh = float(logits.softmax(-1)[:, 1:].flatten().topk(CANDIDATES).values[-1])


def run_own(model: RCNN, batch: list[dict[str, Any]], clock: Callable[[str], None]) -> tuple[int, int]:
    images = model.preprocess(batch)
    clock("preprocess")
    features = model.backbone(images.tensor)
    clock("backbone")
    proposals, _ = model.proposal_generator(features, images.sizes)
    clock("rpn")
    found = model.roi_heads.detect(features, images.sizes, proposals)
    clock("box")
    masks = model.roi_heads.masks(features, found)
    clock("mask")
    result = model.postprocess(found[0], masks[0], images.sizes[0], images.sizes[0])
    clock("paste")
    return len(proposals[0].boxes), len(result["masks"])


def run_torchvision(model: MaskRCNN, image: torch.Tensor, clock: Callable[[str], None]) -> tuple[int, int]:
    images, _ = model.transform([image])
    clock("preprocess")
    features = model.backbone(images.tensors)
    clock("backbone")
    proposals, _ = model.rpn(images, features)
    clock("rpn")
    heads, sizes = model.roi_heads, images.image_sizes
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
    boxes, scores, labels = heads.postprocess_detections(logits, deltas, proposals, sizes)
    clock("box")
    mask_logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, sizes)))
    masks = maskrcnn_inference(mask_logits, labels)
    found = [{"boxes": boxes[0], "labels": labels[0], "scores": scores[0], "masks": masks[0]}]
    clock("mask")
    result = model.transform.postprocess(found, sizes, [tuple(image.shape[-2:])])
    binary = result[0]["masks"] >= 0.5
    clock("paste")
    return len(proposals[0]), len(binary)


def time_mask_heads(device: torch.device) -> None:
    crops = torch.randn(DETECTIONS, 256, 14, 14, device=device)
    for refinement in ("conv", "explicit", "implicit"):
        head = own_model(device, refinement).roi_heads.mask_head
        head(crops)
        clock = Clock(device)
        head(crops)
        clock(refinement)
        print(f"mask head {refinement:9s} {DETECTIONS} regions: {clock.seconds[refinement][0]:.4f} s")


def compare(height: int, width: int, repeats: int, device: torch.device) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    batch, scaled = [{"image": image}], (image.flip(0).float() / 255).to(device)
    own, other = own_model(device), torchvision_model(min(height, width)).to(device)
    calibrate_own(own, batch)
    calibrate_torchvision(other, scaled)
    own_clock, other_clock = Clock(device), Clock(device)
    run_own(own, batch, Clock(device))
    run_torchvision(other, scaled, Clock(device))
    for _ in range(repeats):
        own_clock.start()
        own_counts = run_own(own, batch, own_clock)
        other_clock.start()
        other_counts = run_torchvision(other, scaled, other_clock)
    print(f"{height}x{width}: proposals, detections: own {own_counts}, torchvision {other_counts}")
    ours, theirs = own_clock.medians(), other_clock.medians()
    for stage in STAGES:
        print(f"  {stage:10s} {ours[stage]:8.4f} s {theirs[stage]:8.4f} s  ratio {ours[stage] / theirs[stage]:.2f}")
    total, reference = (sum(m[stage] for stage in COMPARED) for m in (ours, theirs))
    print(f"  {'all but mask':10s} {total:6.4f} s {reference:8.4f} s  ratio {total / reference:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--tf32", action="store_true", help="on a GPU, round float32 to TF32; IFR does not by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    use_tf32(args.tf32)
    where = (
        torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else f"{args.threads} threads of a CPU"
    )
    print(f"torch {torch.__version__}, {where}, TF32: {args.tf32}")
    with torch.inference_mode():
        compare(256, 341, args.repeats, args.device)
        compare(800, 1066, args.repeats, args.device)
        time_mask_heads(args.device)


if __name__ == "__main__":
    main()

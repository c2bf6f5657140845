"""The two-stage detector: images in, losses or detections out."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ifr.checkpoints.names import unwrapped
from ifr.data.annotations import Annotations, ImageSize
from ifr.data.device_copy import device_copy
from ifr.hosts.standalone.detector.backbone import PyramidBackbone
from ifr.hosts.standalone.detector.boxes import by_column, clip, nonempty
from ifr.hosts.standalone.detector.paste import paste_masks
from ifr.hosts.standalone.detector.roi_heads import ROIHeads
from ifr.hosts.standalone.detector.rpn import RegionProposalNetwork
from ifr.hosts.standalone.detector.structures import Detections, ImageBatch
from ifr.hosts.standalone.detector.timm_backbone import TimmStages
from ifr.refine import set_phase
from ifr.solvers.tracing import refuse_tracing


class RCNN(nn.Module):
    """Mask R-CNN or Cascade R-CNN with a feature pyramid.

    Args:
        backbone: computes image features.
        proposal_generator: proposes boxes that may contain objects.
        roi_heads: predict boxes, classes and masks of the proposals.
        pixel_mean: mean of every channel, BGR 0-255.
        pixel_std: standard deviation of every channel.
        explicit_iterations: number of initial training iterations that use the mask head's explicit path.
    """

    def __init__(
        self,
        *,
        backbone: PyramidBackbone,
        proposal_generator: RegionProposalNetwork,
        roi_heads: ROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        explicit_iterations: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.explicit_iterations = explicit_iterations
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            floats = torch.tensor(values, dtype=torch.get_default_dtype())  # whole numbers would be an int64 tensor
            self.register_buffer(name, floats.view(-1, 1, 1), persistent=False)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training mode, detections in evaluation mode.

        Args:
            batch: for every image, `image` (3, H, W) BGR 0-255. Training also needs `instances`, its `Annotations`.
                Evaluation takes an optional output `height` and `width` in pixels; the default is the image's size.

        Returns:
            In training, scalar losses by name. In evaluation, for every image: `boxes` (n, 4) XYXY output pixels,
            `scores` (n,) in [0, 1], `classes` (n,) 0-based, and with a mask head `masks` (n, height, width) bool,
            on the CPU if they take more than 512 MB.

        Raises:
            ValueError: the batch is empty, an image is not (3, H, W), or training lacks annotations.
            RuntimeError: it is being traced by torch.jit.
        """
        refuse_tracing("this detector")
        return self._losses(batch) if self.training else self._detections(batch)

    def _losses(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        images, annotations = self.preprocess(batch), self._annotations(batch)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(features, images.sizes, annotations)
        return {**self.roi_heads.losses(features, images.sizes, proposals, annotations), **losses}

    def _detections(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        return [_pasted(found, _output_size(item)) for found, item in zip(self.detect(batch), batch, strict=True)]

    @torch.no_grad()
    def detect(
        self,
        batch: Sequence[dict[str, Any]],
        score: float | None = None,
        mask_head: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return detections like `forward` in evaluation mode, but with small masks.

        Args:
            batch: see `forward`.
            score: the detections have higher scores; by default, than the threshold of the settings.
            mask_head: see `ROIHeads.masks`.

        Returns:
            For every image, `boxes`, `scores` and `classes` like `forward`, and with a mask head `probabilities`
            (n, side, side) in [0, 1], which span the boxes.
        """
        images = self.preprocess(batch)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(features, images.sizes)
        detections = self.roi_heads.detect(features, images.sizes, proposals, score)
        masks = self.roi_heads.masks(features, detections, mask_head)
        return [
            _scaled(detections[i], masks[i] if masks is not None else None, images.sizes[i], _output_size(item))
            for i, item in enumerate(batch)
        ]

    @torch.no_grad()
    def masks_on(self, batch: Sequence[dict[str, Any]], objects: Sequence[Annotations]) -> list[Tensor]:
        """Predict masks of given classes in given boxes, in evaluation mode.

        Args:
            batch: see `forward`.
            objects: for every image, boxes in output pixels, not empty, and classes.

        Returns:
            For every image, masks (n, height, width) bool on the CPU.

        Raises:
            ValueError: the model has no mask head.
        """
        images = self.preprocess(batch)
        given = []
        for item, size, truth in zip(batch, images.sizes, objects, strict=True):
            height, width = _output_size(item)
            scale = torch.tensor((size[1] / width, size[0] / height)).repeat(2)
            boxes = (truth.boxes * scale.to(truth.boxes)).to(self.pixel_mean.device)
            given.append(Detections(boxes, boxes.new_ones(len(boxes)), truth.classes.to(boxes.device)))
        masks = self.roi_heads.masks(self.backbone(images.tensor), given)
        if masks is None:
            raise ValueError("the model has no mask head")
        return [
            paste_masks(found, truth.boxes.to(found.device), _output_size(item)).cpu()
            for found, truth, item in zip(masks, objects, batch, strict=True)
        ]

    def preprocess(self, batch: Sequence[dict[str, Any]]) -> ImageBatch:
        """Normalise the images and zero-pad them to a common size divisible by `backbone.size_divisibility`.

        Raises:
            ValueError: the batch is empty or an image is not (3, H, W).
        """
        if len(batch) == 0:
            raise ValueError("the batch has no images")
        for item in batch:
            if item["image"].dim() != 3 or item["image"].shape[0] != len(self.pixel_mean) or 0 in item["image"].shape:
                raise ValueError(f"image must be (3, H, W), got {tuple(item['image'].shape)}")
        device = self.pixel_mean.device
        images = [(device_copy(item["image"], device) - self.pixel_mean) / self.pixel_std for item in batch]
        sizes: list[ImageSize] = [(image.shape[1], image.shape[2]) for image in images]
        step = self.backbone.size_divisibility
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        tensor = self.pixel_mean.new_zeros((len(images), len(self.pixel_mean), height, width))
        for target, image in zip(tensor, images, strict=True):
            target[:, : image.shape[1], : image.shape[2]] = image
        return ImageBatch(tensor, sizes)

    @staticmethod
    def postprocess(
        detections: Detections, masks: Tensor | None, size: ImageSize, output_size: ImageSize
    ) -> dict[str, Tensor]:
        """Scale the detections of one image from `size` to `output_size` and drop boxes that become empty."""
        return _pasted(_scaled(detections, masks, size, output_size), output_size)

    def set_iteration(self, iteration: int) -> None:
        """Choose the mask head's explicit or implicit path for this training iteration, counted from 0."""
        set_phase(self, "explicit" if iteration < self.explicit_iterations else "implicit")

    def published_names(self) -> dict[str, str]:
        """Map the keys of `state_dict()` to those of a cvpods checkpoint."""
        cascade = len(self.roi_heads.stages) > 1
        return {key: published_name(unwrapped(key), cascade=cascade) for key in self.state_dict()}

    def translated(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights of a backbone under its library's names with those of a checkpoint; others as they are."""
        bottom_up = self.backbone.bottom_up
        own = bottom_up.translated(weights) if isinstance(bottom_up, TimmStages) else None
        return weights if own is None else {f"{_TIMM}{key}": value for key, value in own.items()}

    def _annotations(self, batch: Sequence[dict[str, Any]]) -> list[Annotations]:
        for i, item in enumerate(batch):
            if not isinstance(item.get("instances"), Annotations):
                raise ValueError(f"training needs Annotations under 'instances'; image {i} has {list(item)}")
        return [item["instances"].to(self.pixel_mean.device) for item in batch]


def _scaled(detections: Detections, masks: Tensor | None, size: ImageSize, output_size: ImageSize) -> dict[str, Tensor]:
    scale = (output_size[1] / size[1], output_size[0] / size[0])
    boxes = clip(by_column(torch.mul, detections.boxes, scale * 2), output_size)
    keep = torch.nonzero(nonempty(boxes)).squeeze(1)
    result = {"boxes": boxes[keep], "scores": detections.scores[keep], "classes": detections.classes[keep]}
    return result if masks is None else {**result, "probabilities": masks[keep]}


def _pasted(found: dict[str, Tensor], output_size: ImageSize) -> dict[str, Tensor]:
    small = found.pop("probabilities", None)
    return found if small is None else {**found, "masks": paste_masks(small, found["boxes"], output_size)}


def _output_size(item: dict[str, Any]) -> ImageSize:
    return int(item.get("height", item["image"].shape[1])), int(item.get("width", item["image"].shape[2]))


_TIMM = "backbone.bottom_up.net."
_FPN_PARTS = {"inner": "lateral", "layer": "output"}
_FIRST_LEVEL = 2  # p2


def published_name(key: str, *, cascade: bool) -> str:
    """Return the cvpods name of the `RCNN` tensor `key`; only the box stages of a cascade are numbered."""
    if key.startswith(_TIMM):
        return key
    key = re.sub(r"\bfpn\.(inner|layer)_blocks\.(\d+)\.([01])\.", _fpn_name, key)
    if key.startswith("backbone.bottom_up."):
        key = key.replace(".stem.bn1.", ".stem.conv1.norm.")
        key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
        key = key.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    key = re.sub(r"\.stages\.(\d+)\.(box_head|box_predictor)\.", r".\2.\1." if cascade else r".\2.", key)
    key = re.sub(r"\.(conv|mask_fcn)(\d+)\.0\.", r".\1\2.", key)
    return re.sub(r"\.(conv|mask_fcn)(\d+)\.1\.", r".\1\2.norm.", key)


def _fpn_name(match: re.Match[str]) -> str:
    return f"fpn_{_FPN_PARTS[match[1]]}{_FIRST_LEVEL + int(match[2])}." + ("norm." if match[3] == "1" else "")

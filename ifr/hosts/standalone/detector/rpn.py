"""Region proposal network (Faster R-CNN, Ren et al. 2015, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifr.data.annotations import Annotations, ImageSize
from ifr.hosts.standalone.detector.anchors import AnchorGenerator
from ifr.hosts.standalone.detector.boxes import BoxCoder, Matcher, clip, nonempty, suppress
from ifr.hosts.standalone.detector.layers import init_normal
from ifr.hosts.standalone.detector.precision import at_least_float32, outside_autocast
from ifr.hosts.standalone.detector.sampling import Sampler, random_sample
from ifr.hosts.standalone.detector.structures import Proposals


class RPNHead(nn.Module):
    """A 3x3 convolution followed by objectness logits and box deltas for every anchor, shared by all levels."""

    def __init__(self, *, channels: int, anchors_per_cell: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors_per_cell, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, anchors_per_cell * 4, kernel_size=1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            init_normal(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (N, H * W * A) and deltas (N, H * W * A, 4), at least float32, for every level (N, C, H, W)."""
        logits, deltas = [], []
        for feature in features:
            hidden = F.relu(self.conv(feature))
            logit, delta = self.objectness_logits(hidden), self.anchor_deltas(hidden)
            logits.append(at_least_float32(logit.permute(0, 2, 3, 1).flatten(1)))
            deltas.append(at_least_float32(delta.permute(0, 2, 3, 1).reshape(len(feature), -1, 4)))
        return logits, deltas


@dataclass(frozen=True)
class ProposalLimits:
    """Largest numbers of proposals that are kept."""

    before_nms: int
    """Per level."""
    after_nms: int
    """Per image."""


@dataclass(frozen=True)
class RPNSettings:
    """Settings of a region proposal network."""

    coder: BoxCoder
    matcher: Matcher
    train_limits: ProposalLimits
    test_limits: ProposalLimits
    nms_threshold: float
    min_size: float
    """Proposals with a side of this many pixels or fewer are dropped."""
    batch_size_per_image: int
    positive_fraction: float
    smooth_l1_beta: float
    loss_weight: float
    boundary: int
    """Anchors that extend further than this many pixels outside the image are ignored in training; negative: none."""


class RegionProposalNetwork(nn.Module):
    """Proposes boxes that may contain objects, and computes its training losses."""

    def __init__(
        self,
        *,
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        settings: RPNSettings,
        in_features: Sequence[str],
    ) -> None:
        super().__init__()
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.settings = settings
        self.in_features = list(in_features)
        self.sampler: Sampler = random_sample

    def forward(
        self, features: dict[str, Tensor], sizes: Sequence[ImageSize], annotations: Sequence[Annotations] | None = None
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Return the proposals for every image and, given `annotations`, the losses `loss_rpn_cls` and `loss_rpn_loc`.

        Raises:
            FloatingPointError: predictions are not finite in training mode.
        """
        levels = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(levels)
        losses = {}
        with outside_autocast(levels[0].device):
            anchors = self.anchor_generator(levels)
            if annotations is not None:
                losses = self._losses(anchors, logits, deltas, sizes, annotations)
            with torch.no_grad():
                return self._propose(anchors, logits, deltas, sizes), losses

    def _propose(
        self, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], sizes: Sequence[ImageSize]
    ) -> list[Proposals]:
        limits = self.settings.train_limits if self.training else self.settings.test_limits
        chosen_deltas, chosen_anchors, best_logits, of_level = [], [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            best, index = logit.topk(torch.sym_min(limits.before_nms, logit.shape[1]), dim=1)
            chosen_deltas.append(torch.gather(delta, 1, index[..., None].expand(-1, -1, 4)))
            chosen_anchors.append(anchor[index])
            best_logits.append(best)
            of_level.append(torch.full_like(best[0], level, dtype=torch.int64))
        boxes = self.settings.coder.decode(torch.cat(chosen_deltas, dim=1), torch.cat(chosen_anchors, dim=1))
        scores, levels = torch.cat(best_logits, dim=1), torch.cat(of_level)
        finite = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        if self.training and not bool(finite.all()):
            raise FloatingPointError(f"{int((~finite).sum())} of {finite.numel()} proposals are not finite")
        return [
            self._filter(image_boxes, image_scores, levels, usable, size, limits.after_nms)
            for image_boxes, image_scores, usable, size in zip(boxes, scores, finite, sizes, strict=True)
        ]

    def _filter(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, usable: Tensor, size: ImageSize, count: int
    ) -> Proposals:
        boxes = clip(boxes, size)
        keep = torch.nonzero(usable & nonempty(boxes, self.settings.min_size)).squeeze(1)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        kept = suppress(boxes, scores, levels, self.settings.nms_threshold, size)[:count]
        return Proposals(boxes[kept], scores[kept])

    def _losses(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        sizes: Sequence[ImageSize],
        annotations: Sequence[Annotations],
    ) -> dict[str, Tensor]:
        """Return binary cross-entropy and smooth L1, summed over the samples, divided by the requested sample count."""
        settings = self.settings
        every_anchor = torch.cat(anchors)
        predicted_logits, predicted_deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        classification, localization = predicted_logits.sum() * 0, predicted_deltas.sum() * 0
        for i, (truth, size) in enumerate(zip(annotations, sizes, strict=True)):
            targets, labels = settings.matcher.match(truth.boxes, every_anchor)
            if settings.boundary >= 0:
                labels = torch.where(
                    _inside(every_anchor, size, settings.boundary), labels, torch.full_like(labels, -1)
                )
            positive, negative = self.sampler(labels, settings.batch_size_per_image, settings.positive_fraction, 0)
            sampled = predicted_logits[i, torch.cat((positive, negative))]
            wanted = torch.cat((torch.ones_like(positive), torch.zeros_like(negative))).to(sampled.dtype)
            classification = classification + F.binary_cross_entropy_with_logits(sampled, wanted, reduction="sum")
            if len(positive):
                coded = settings.coder.encode(every_anchor[positive], truth.boxes[targets[positive]])
                localization = localization + F.smooth_l1_loss(
                    predicted_deltas[i, positive], coded, beta=settings.smooth_l1_beta, reduction="sum"
                )
        scale = settings.loss_weight / (settings.batch_size_per_image * len(annotations))
        return {"loss_rpn_cls": classification * scale, "loss_rpn_loc": localization * scale}


def _inside(boxes: Tensor, size: ImageSize, margin: int) -> Tensor:
    height, width = size
    low = (boxes[:, :2] >= -margin).all(dim=1)
    return low & (boxes[:, 2] < width + margin) & (boxes[:, 3] < height + margin)

"""Region heads: boxes by one stage or a cascade, and masks."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifr.data.annotations import Annotations, ImageSize
from ifr.hosts.heads import penalties
from ifr.hosts.standalone.detector.box_stage import BoxStage, DetectionFilter, StageOutput
from ifr.hosts.standalone.detector.boxes import nonempty
from ifr.hosts.standalone.detector.mask_targets import MaskTargets
from ifr.hosts.standalone.detector.pooling import PyramidPooler
from ifr.hosts.standalone.detector.precision import at_least_float32
from ifr.hosts.standalone.detector.sampling import Sampler, random_sample, share_of_samples
from ifr.hosts.standalone.detector.structures import Detections, LabelledProposals, Proposals


@dataclass(frozen=True)
class ProposalSampling:
    """Settings for choosing the proposals that the region heads are trained on."""

    per_image: int
    positive_fraction: float
    append_truth: bool
    """Add the ground-truth boxes to the proposals."""


class ROIHeads(nn.Module):
    """Box stages and a mask head over a feature pyramid.

    Several stages make Cascade R-CNN (Cai and Vasconcelos 2018): each stage refines the boxes of the previous one and
    is trained with its own overlap threshold; class scores are averaged over the stages.

    Args:
        stages: box stages; the first takes the proposals.
        box_pooler: crops features for boxes.
        mask_head: maps crops (n, C, H, W) and classes (n,) to the mask logits of these classes (n, side, side); None to
            predict only boxes.
        mask_pooler: crops features for masks.
        in_features: names of the pyramid levels to crop from.
        num_classes: number of classes without the background.
        sampling: how many proposals enter the losses.
        detection_filter: selects the boxes that become detections.
    """

    def __init__(
        self,
        *,
        stages: Sequence[BoxStage],
        box_pooler: PyramidPooler,
        mask_head: nn.Module | None,
        mask_pooler: PyramidPooler,
        in_features: Sequence[str],
        num_classes: int,
        sampling: ProposalSampling,
        detection_filter: DetectionFilter,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.box_pooler = box_pooler
        self.mask_head = mask_head
        self.mask_pooler = mask_pooler
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.sampling = sampling
        self.sampler: Sampler = random_sample
        self.detection_filter = detection_filter

    def losses(
        self,
        features: dict[str, Tensor],
        sizes: Sequence[ImageSize],
        proposals: Sequence[Proposals],
        annotations: Sequence[Annotations],
    ) -> dict[str, Tensor]:
        """Return the training losses of all stages and of the masks, by name."""
        levels = [features[name] for name in self.in_features]
        sampled = [self._sample(p, a) for p, a in zip(proposals, annotations, strict=True)]
        foreground = [_select(p, slice(positives)) for p, positives in sampled]
        targets = MaskTargets(foreground) if self.mask_head is not None else None
        losses: dict[str, Tensor] = {}
        labelled = [p for p, _ in sampled]
        stages = self._stages()
        for k, stage in enumerate(stages):
            output = self._run(stage, levels, [p.boxes for p in labelled])
            suffix = f"_stage{k}" if len(stages) > 1 else ""
            losses.update({name + suffix: loss for name, loss in stage.losses(output, labelled).items()})
            if k + 1 < len(stages):
                boxes = [b[nonempty(b)] for b in stage.refine(output, sizes)]
                labelled = [self._label(b, a, stages[k + 1]) for b, a in zip(boxes, annotations, strict=True)]
        if self.mask_head is not None and targets is not None:
            losses.update(self._mask_losses(levels, foreground, targets, self.mask_head))
        return losses

    def detect(
        self,
        features: dict[str, Tensor],
        sizes: Sequence[ImageSize],
        proposals: Sequence[Proposals],
        score: float | None = None,
    ) -> list[Detections]:
        """Return the detections in every image with scores above `score`, by default the filter's threshold."""
        return self.select(*self.score(features, sizes, proposals), sizes, score)

    def score(
        self, features: dict[str, Tensor], sizes: Sequence[ImageSize], proposals: Sequence[Proposals]
    ) -> tuple[StageOutput, list[Tensor]]:
        """Return the output of the last stage, and the scores (n_i, num_classes + 1) of image i's proposals."""
        levels = [features[name] for name in self.in_features]
        stages = self._stages()
        outputs = [self._run(stages[0], levels, [p.boxes for p in proposals])]
        for previous, stage in itertools.pairwise(stages):
            outputs.append(self._run(stage, levels, previous.refine(outputs[-1], sizes)))
        last = outputs[-1]
        return last, last.split(torch.stack([F.softmax(output.logits, dim=-1) for output in outputs]).mean(dim=0))

    def select(
        self,
        last: StageOutput,
        scores: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        score: float | None = None,
    ) -> list[Detections]:
        """Return the detections in every image, given the result of `score`."""
        keep, coder = self.detection_filter, self._stages()[-1].coder
        keep = keep if score is None else dataclasses.replace(keep, score_threshold=score)
        return [
            keep(b, d, s, coder, size)
            for b, d, s, size in zip(last.boxes, last.split(last.deltas), scores, sizes, strict=True)
        ]

    def masks(
        self,
        features: dict[str, Tensor],
        detections: Sequence[Detections],
        mask_head: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> list[Tensor] | None:
        """Return the mask probabilities (n_i, side, side) of the detected classes; None without a mask head.

        Args:
            features: the pyramid.
            detections: for every image.
            mask_head: in place of the mask head; maps the crops of all images, their boxes (n, 4) and classes (n,) to
                the mask logits of these classes (n, side, side).
        """
        if self.mask_head is None:
            return None
        levels, boxes = [features[name] for name in self.in_features], [d.boxes for d in detections]
        crops = self.mask_pooler(levels, boxes)
        classes = torch.cat([d.classes for d in detections])
        logits = self.mask_head(crops, classes) if mask_head is None else mask_head(crops, torch.cat(boxes), classes)
        return list(torch.split(at_least_float32(logits).sigmoid(), [len(b) for b in boxes]))

    def _stages(self) -> list[BoxStage]:
        return cast("list[BoxStage]", list(self.stages))

    def _run(self, stage: BoxStage, levels: list[Tensor], boxes: list[Tensor]) -> StageOutput:
        crops = self.box_pooler(levels, boxes)
        if crops.requires_grad and len(self.stages) > 1:
            # The losses of the stages are summed; the features get the mean of their gradients.
            crops.register_hook(lambda gradient: gradient / len(self.stages))  # type: ignore[no-untyped-call]
        return stage(crops, boxes)

    def _label(self, boxes: Tensor, truth: Annotations, stage: BoxStage) -> LabelledProposals:
        targets, labels = stage.matcher.match(truth.boxes, boxes)
        if len(truth) == 0:
            return LabelledProposals(boxes, torch.full_like(targets, self.num_classes), targets, truth)
        classes = truth.classes[targets]
        classes = torch.where(labels == 0, torch.full_like(classes, self.num_classes), classes)
        classes = torch.where(labels == -1, torch.full_like(classes, -1), classes)
        return LabelledProposals(boxes, classes, targets, truth)

    def _sample(self, proposals: Proposals, truth: Annotations) -> tuple[LabelledProposals, int]:
        """Return the sampled proposals in one image, those with an object first, and the number of these."""
        boxes = torch.cat((proposals.boxes, truth.boxes)) if self.sampling.append_truth else proposals.boxes
        labelled = self._label(boxes, truth, self._stages()[0])
        positive, negative = self.sampler(
            labelled.classes, self.sampling.per_image, self.sampling.positive_fraction, self.num_classes
        )
        return _select(labelled, torch.cat((positive, negative))), len(positive)

    def _mask_losses(
        self,
        levels: list[Tensor],
        foreground: Sequence[LabelledProposals],
        targets: MaskTargets,
        mask_head: nn.Module,
    ) -> dict[str, Tensor]:
        """Return the losses of the masks, means over the foreground of all workers and 0 without any.

        They are the true class's binary cross-entropy and, if the refinement has one, its penalty.
        """
        classes = torch.cat([p.classes for p in foreground])
        logits = at_least_float32(mask_head(self.mask_pooler(levels, [p.boxes for p in foreground]), classes))
        share = share_of_samples(len(logits), logits.device)
        losses = {name: loss * share for name, loss in penalties(mask_head).items()}
        if len(logits) == 0:
            return {"loss_mask": logits.sum() * 0, **losses}
        truth = targets.read(logits.shape[-1]).to(logits.dtype)
        return {"loss_mask": F.binary_cross_entropy_with_logits(logits, truth) * share, **losses}


def _select(proposals: LabelledProposals, index: Tensor | slice) -> LabelledProposals:
    return LabelledProposals(
        proposals.boxes[index], proposals.classes[index], proposals.targets[index], proposals.annotations
    )

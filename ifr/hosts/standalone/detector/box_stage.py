"""One stage of box classification and refinement; a cascade has several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifr.data.annotations import ImageSize
from ifr.hosts.standalone.detector.boxes import BoxCoder, Matcher, clip, suppress
from ifr.hosts.standalone.detector.heads import BoxPredictor
from ifr.hosts.standalone.detector.precision import outside_autocast
from ifr.hosts.standalone.detector.sampling import share_of_samples
from ifr.hosts.standalone.detector.structures import Detections, LabelledProposals


@dataclass(frozen=True)
class StageOutput:
    """Predictions for the proposals of all images, concatenated in image order."""

    logits: Tensor
    """(R, num_classes + 1), background last."""
    deltas: Tensor
    """(R, num_classes or 1, 4)."""
    boxes: list[Tensor]
    """(n_i, 4) XYXY pixels, the proposals of image i."""

    def split(self, values: Tensor) -> list[Tensor]:
        """Split `values` (R, ...) by image."""
        return list(torch.split(values, [len(b) for b in self.boxes]))


class BoxStage(nn.Module):
    """A box head, its predictor, its box coder, and the matcher that labels its proposals."""

    def __init__(
        self,
        *,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        coder: BoxCoder,
        matcher: Matcher,
        smooth_l1_beta: float,
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.coder = coder
        self.matcher = matcher
        self.smooth_l1_beta = smooth_l1_beta

    def forward(self, crops: Tensor, boxes: Sequence[Tensor]) -> StageOutput:
        """Predict classes and deltas from the crops (R, C, h, w) of `boxes`."""
        logits, deltas = self.box_predictor(self.box_head(crops))
        return StageOutput(logits, deltas, list(boxes))

    def refine(self, output: StageOutput, sizes: Sequence[ImageSize]) -> list[Tensor]:
        """Apply class-agnostic deltas; return clipped boxes (n_i, 4) for every image, detached from the graph."""
        with outside_autocast(output.deltas.device):
            decoded = self.coder.decode(output.deltas[:, 0].detach(), torch.cat(output.boxes))
            return [clip(b, size) for b, size in zip(output.split(decoded), sizes, strict=True)]

    def losses(self, output: StageOutput, labelled: Sequence[LabelledProposals]) -> dict[str, Tensor]:
        """Return the mean cross-entropy, and the true class's smooth L1 loss divided by the number of all proposals.

        Both are normalised over the proposals of all workers. Without proposals they are zero but keep the graph.
        """
        classes = torch.cat([p.classes for p in labelled])
        share = share_of_samples(len(classes), output.logits.device)
        if len(classes) == 0:
            return {"loss_cls": output.logits.sum() * 0, "loss_box_reg": output.deltas.sum() * 0}
        background = output.logits.shape[1] - 1
        foreground = torch.nonzero((classes >= 0) & (classes < background)).squeeze(1)
        boxes, targets = torch.cat([p.boxes for p in labelled]), torch.cat([p.target_boxes for p in labelled])
        column = classes[foreground] if output.deltas.shape[1] > 1 else torch.zeros_like(foreground)
        with outside_autocast(output.deltas.device):
            regression = F.smooth_l1_loss(
                output.deltas[foreground, column],
                self.coder.encode(boxes[foreground], targets[foreground]),
                beta=self.smooth_l1_beta,
                reduction="sum",
            )
            classification = F.cross_entropy(output.logits, classes)
        return {"loss_cls": classification * share, "loss_box_reg": regression / len(classes) * share}


@dataclass(frozen=True)
class DetectionFilter:
    """Selects the scored boxes that become detections."""

    score_threshold: float
    nms_threshold: float
    max_detections: int
    """Per image; no limit if negative."""

    def __call__(self, boxes: Tensor, deltas: Tensor, scores: Tensor, coder: BoxCoder, size: ImageSize) -> Detections:
        """Return the detections in one image.

        Args:
            boxes: proposals (n, 4), XYXY pixels.
            deltas: (n, num_classes or 1, 4).
            scores: (n, num_classes + 1), background last.
            coder: decodes `deltas`.
            size: the image's height and width.
        """
        finite = torch.isfinite(deltas).flatten(1).all(dim=1) & torch.isfinite(scores).all(dim=1)
        above = (scores[:, :-1] > self.score_threshold) & finite[:, None]
        row, label = torch.nonzero(above, as_tuple=True)
        column = label if deltas.shape[1] > 1 else torch.zeros_like(label)
        score = scores[row, label]
        with outside_autocast(boxes.device):
            decoded = clip(coder.decode(deltas[row, column], boxes[row]), size)
            kept = suppress(decoded, score, label, self.nms_threshold, size)
        if self.max_detections >= 0:
            kept = kept[: self.max_detections]
        return Detections(decoded[kept], score[kept], label[kept])

"""The detector as a graph with one image as input and a fixed number of detections as output."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ifr.data.annotations import ImageSize
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.structures import Detections, Proposals
from ifr.solvers.tracing import refuse_tracing

INPUTS = ("image", "size")
OUTPUTS = ("boxes", "scores", "classes", "masks")
_LEAST, _MOST = (
    3,
    512,
)  # sides of an image of any size, in multiples of the divisor; torch takes a level of 1 cell as fixed


class ExportedDetector(nn.Module):
    """Detects objects in one image; masks are not pasted.

    Args:
        model: the detector; it is put into evaluation mode.

    Raises:
        ValueError: the number of detections in an image is not limited.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = model.eval()
        self.divisor = model.backbone.size_divisibility
        self.proposals = model.proposal_generator.settings.test_limits.after_nms
        self.detections = model.roi_heads.detection_filter.max_detections
        if self.detections < 1:
            raise ValueError(f"an exported model needs TEST.DETECTIONS_PER_IMAGE of at least 1, got {self.detections}")

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in an image.

        Args:
            image: (3, H, W) uint8, BGR 0-255, resized for the network and padded at the bottom and on the right to
                multiples of `divisor`.
            size: (2,) int64, height and width without the padding.

        Returns:
            `boxes` (D, 4) XYXY pixels of the image, `scores` (D,) descending, `classes` (D,) 0-based, and with a mask
            head `masks` (D, side, side), probabilities inside the boxes. D is TEST.DETECTIONS_PER_IMAGE; rows without
            an object are zero.
        """
        refuse_tracing("this detector")
        model, heads = self.model, self.model.roi_heads
        down, right = (torch.arange(side, device=image.device) for side in image.shape[1:])
        inside = (down < size[0])[:, None] & (right < size[1])
        features = model.backbone(torch.where(inside, (image - model.pixel_mean) / model.pixel_std, 0)[None])
        sizes: list[ImageSize] = [(size[0].item(), size[1].item())]  # type: ignore[list-item]
        (proposals,), _ = model.proposal_generator(features, sizes)
        boxes, logits = (_padded(values, self.proposals) for values in (proposals.boxes, proposals.logits))
        output, (scores,) = heads.score(features, sizes, [Proposals(boxes, logits)])
        is_padding = torch.arange(self.proposals, device=boxes.device) >= proposals.boxes.shape[0]
        scores = scores.masked_fill(is_padding[:, None], -torch.inf)  # never a detection
        (found,) = heads.select(output, [scores], sizes)
        boxes, scores, classes = (_padded(v, self.detections) for v in (found.boxes, found.scores, found.classes))
        masks = heads.masks(features, [Detections(boxes, scores, classes)])
        if masks is None:
            return boxes, scores, classes
        return boxes, scores, classes, torch.where((scores > 0)[:, None, None], masks[0], 0)


def _padded(values: Tensor, count: int) -> Tensor:
    """Append zeros to values (n, ...), n of at most `count`: (count, ...)."""
    return torch.cat((values, values.new_zeros(count, *values.shape[1:])))[:count]


def canvas_size(sizes: Sequence[ImageSize], divisor: int) -> ImageSize:
    """Return the smallest height and width, of an exported model for images of any size, that images fit into."""
    height, width = (max(_LEAST, -(-max(sides) // divisor)) * divisor for sides in zip(*sizes, strict=True))
    return height, width


def model_inputs(image: NDArray[np.uint8], canvas: ImageSize) -> tuple[Tensor, Tensor]:
    """Return the inputs of an `ExportedDetector` for an image (H, W, 3) uint8 BGR that has the size for the network."""
    height, width = image.shape[:2]
    padded = torch.zeros((3, *canvas), dtype=torch.uint8)
    padded[:, :height, :width] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return padded, torch.tensor((height, width))


def export_program(detector: ExportedDetector, canvas: ImageSize | None) -> ExportedProgram:
    """Export a detector with `torch.export`.

    Args:
        detector: the detector, on the CPU.
        canvas: height and width of the padded images; None for any multiples of the divisor from three up.
    """
    divisor = detector.divisor
    height, width = canvas or (_LEAST * divisor, (_LEAST + 2) * divisor)
    dynamic = None
    if canvas is None:
        sides = {1: divisor * Dim("h", min=_LEAST, max=_MOST), 2: divisor * Dim("w", min=_LEAST, max=_MOST)}
        dynamic = {"image": sides, "size": None}
    example = torch.zeros((3, height, width), dtype=torch.uint8), torch.tensor((height, width))
    with torch.no_grad(), _quiet():
        return torch.export.export(detector, example, dynamic_shapes=dynamic)


def onnx_bytes(program: ExportedProgram, opset: int | None, metadata: dict[str, str]) -> tuple[bytes, int]:
    """Convert a program to an ONNX file; also return its opset, which may be another one than was asked for.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        RuntimeError: the program has an operation that ONNX has not.
    """
    with torch.no_grad(), _quiet():  # with gradients, torch 2.14 fails to decompose the program
        names = OUTPUTS[: len(program.graph_signature.user_outputs)]
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=INPUTS, output_names=names, verbose=False
        )
    assert converted is not None
    converted.model.metadata_props.update(metadata)
    return converted.model_proto.SerializeToString(), converted.model.opset_imports[""]


def program_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """Convert a program to a pt2 file, with the metadata as extra files."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=metadata)
    return file.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, torchvision and onnxscript, which warn of their own functions and log each step."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

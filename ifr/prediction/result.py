"""What a model found in one picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ifr.data.classes import Classes
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.prediction.masks import Mask
from ifr.visualize import Style, draw_detections


@dataclass(frozen=True)
class Detection:
    """One object."""

    box: tuple[float, float, float, float]
    """XYXY pixels."""
    score: float
    class_name: str
    class_id: int
    """The class, counted from 0."""
    mask: Mask | None
    """None if the model has no mask head."""


class Result:
    """The objects in one picture, best first: a sequence of `Detection`, and arrays of all.

    Args:
        image: the picture (H, W, 3), BGR 0-255.
        name: what it is called, such as its path; may be empty.
        classes: the classes of the model.
        boxes: (n, 4) XYXY pixels.
        scores: (n,) in [0, 1], descending.
        class_ids: (n,) counted from 0, in the order of `classes`.
        masks: makes the n masks when they are first asked for; None without a mask head.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        name: str,
        classes: Classes,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        class_ids: NDArray[np.int64],
        masks: Callable[[], list[Mask]] | None,
    ) -> None:
        self.image = image
        self.name = name
        self.classes = classes
        self.boxes, self.scores, self.class_ids = boxes, scores, class_ids
        self._masks = masks

    @property
    def class_names(self) -> list[str]:
        """The name of each object's class."""
        return [self.classes.names[label] for label in self.class_ids.tolist()]

    @cached_property
    def masks(self) -> list[Mask] | None:
        """The mask of each object; None if the model has no mask head."""
        return None if self._masks is None else self._masks()

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> list[Detection]: ...
    def __getitem__(self, index: int | slice) -> Detection | list[Detection]:
        """Return an object, or the list of a slice.

        Raises:
            IndexError: there are not so many.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        left, top, right, bottom = self.boxes[index].tolist()
        label = int(self.class_ids[index])
        mask = None if self.masks is None else self.masks[index]
        return Detection((left, top, right, bottom), float(self.scores[index]), self.classes.names[label], label, mask)

    def __iter__(self) -> Iterator[Detection]:
        """Iterate over the objects."""
        return (self[index] for index in range(len(self)))

    def plot(self, labels: str = "full", line_width: int | None = None, scale: int = 1) -> Image.Image:
        """Draw masks, boxes, class names and scores on the picture; arguments as for `ifr.visualize.Style`."""
        style, found = Style(labels, line_width, scale), self._tensors()
        windows = None if self.masks is None else [(mask.window, mask.corner) for mask in self.masks]
        return draw_detections(self.image, found, self.classes.names, self.classes.category_ids, style, windows)

    def to_coco(self, image_id: int, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """Return the entries of a COCO results file.

        Args:
            image_id: the picture's id in its data set.
            category_ids: the category id of every class, by default those of the training data; objects of classes
                without one are left out.
        """
        results = coco_results(self._tensors(), image_id, range(len(self.classes.names)))
        for result, mask in zip(results, self.masks or (), strict=False):
            result["segmentation"] = mask.rle
        ids = self.classes.category_ids if category_ids is None else category_ids
        numbered = [{**result, "category_id": ids[result["category_id"]]} for result in results]
        return [result for result in numbered if result["category_id"] is not None]

    def to_supervision(self) -> Any:
        """Return the objects as `supervision.Detections`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=None if self.masks is None else self._stacked(self.masks),
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return `boxes`, `scores`, `classes` and, with a mask head, `masks` (n, H, W) bool, as the network does."""
        found = self._tensors()
        if self.masks is not None:
            found["masks"] = torch.from_numpy(self._stacked(self.masks))
        return found

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return `tensors` without the masks, which take the size of the picture for each object."""
        arrays = {"boxes": self.boxes, "scores": self.scores, "classes": self.class_ids}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _stacked(self, masks: Sequence[Mask]) -> NDArray[np.bool_]:
        full = np.zeros((len(masks), *self.image.shape[:2]), dtype=bool)
        for target, mask in zip(full, masks, strict=True):
            target[:] = mask.array
        return full

    def __repr__(self) -> str:
        """Return the picture's name and size, and the objects of each class with their range of scores."""
        size = f"{self.image.shape[1]} x {self.image.shape[0]}"
        head = f"{self.name}, {size}" if self.name else size
        if not len(self):
            return f"Result({head}: nothing found)"
        parts = []
        for label in dict.fromkeys(self.class_ids.tolist()):
            scores = self.scores[self.class_ids == label]
            span = f"{scores.max():.2f}" + (f" to {scores.min():.2f}" if len(scores) > 1 else "")
            parts.append(f"{len(scores)} {self.classes.names[label]} ({span})")
        return f"Result({head}: {', '.join(parts)})"

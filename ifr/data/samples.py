"""Builds a detector's inputs from images and annotations."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ifr.data.annotations import Annotations, ImageSize
from ifr.data.augmentation import Augmentation
from ifr.data.coco import CocoImage, CocoObject
from ifr.data.columns import Segmentation
from ifr.data.geometry import Geometry, leaves, move
from ifr.data.images import read_image
from ifr.data.intensity import Intensity
from ifr.data.masks import clip_polygon, decode_runs, polygons_to_mask
from ifr.data.transforms import ImageTransform
from ifr.errors import DatasetError, ImageError

Sample = dict[str, Any]


class TrainingSamples(Dataset[Sample]):
    """Augmented images with their annotations, indexed by position and seed.

    Args:
        images: the annotated images of all data sets.
        augmentations: the augmentations applied to every image.
        masks: include masks in the annotations.
        bitmasks: always use bitmaps; otherwise an image whose masks are all polygons keeps them.
        intensity: scales pictures of more than 8 bits, which are refused without it.
    """

    def __init__(
        self,
        images: Dataset[CocoImage],
        *,
        augmentations: Sequence[Augmentation],
        masks: bool,
        bitmasks: bool,
        intensity: Intensity | None = None,
    ) -> None:
        self.images = images
        self.augmentations = augmentations
        self.masks = masks
        self.bitmasks = bitmasks
        self.intensity = intensity

    def __getitem__(self, position_and_seed: tuple[int, int]) -> Sample:
        """Return `image` (3, H, W) uint8 BGR 0-255, `instances` and the entries of `describe`.

        Raises:
            ImageError: the file is missing, damaged, or not of the annotated size.
            DatasetError: anything else failed; the message names the image.
        """
        position, seed = position_and_seed
        record = self.images[position]
        with named(record):
            pixels = read_picture(record, self.intensity)
            geometries, size = draw(self.augmentations, record, torch.Generator().manual_seed(seed))
            for geometry, _ in geometries:
                pixels = geometry.image(pixels)
            annotations = annotate(record, geometries, size, masks=self.masks, bitmasks=self.bitmasks)
            return {"image": _to_tensor(pixels), "instances": annotations, **describe(record)}


class EvaluationSamples(Dataset[Sample]):
    """Images for a detector in evaluation mode, resized by INPUT.AUG.TEST_PIPELINES.

    Args:
        images: the annotated images.
        transform: the resizing, from `build_test_transform`.
        intensity: scales pictures of more than 8 bits, which are refused without it.
    """

    def __init__(
        self, images: Dataset[CocoImage], transform: ImageTransform, intensity: Intensity | None = None
    ) -> None:
        self.images = images
        self.transform = transform
        self.intensity = intensity

    def __getitem__(self, position: int) -> Sample:
        """Return `image` (3, H, W) uint8 BGR 0-255 and the entries of `describe`.

        Raises:
            ImageError: the file is missing, damaged, or not of the annotated size.
            DatasetError: anything else failed; the message names the image.
        """
        record = self.images[position]
        with named(record):
            return {"image": _to_tensor(self.transform(read_picture(record, self.intensity))), **describe(record)}


def draw(
    augmentations: Sequence[Augmentation], record: CocoImage, generator: torch.Generator
) -> tuple[list[tuple[Geometry, ImageSize]], ImageSize]:
    """Draw the changes of an image; return each with the height and width before it, and those after the last."""
    geometries = []
    size = (record.height, record.width)
    for augmentation in augmentations:
        geometry = augmentation.draw(size, generator)
        geometries.append((geometry, size))
        size = geometry.size(size)
    return geometries, size


def describe(record: CocoImage) -> Sample:
    """Return `height` and `width` in pixels before any change, `file_name` and `image_id`."""
    return {
        "height": record.height,
        "width": record.width,
        "file_name": str(record.path),
        "image_id": record.image_id,
    }


def annotate(
    record: CocoImage,
    geometries: Sequence[tuple[Geometry, ImageSize]],
    size: ImageSize,
    *,
    masks: bool,
    bitmasks: bool = False,
) -> Annotations:
    """Apply changes to the annotations of an image; clip boxes to the image and drop objects that vanish.

    Where changes cut off a part of the image, polygons are clipped to the rest, boxes shrink to what is visible of the
    mask, and objects of which less than a pixel is visible are dropped.

    Args:
        record: the image before any change.
        geometries: every change and the (height, width) of the image before it.
        size: height and width after the changes.
        masks: include masks in the annotations.
        bitmasks: use bitmaps even if all masks are polygons.

    Raises:
        DatasetError: a run-length encoding does not have the image's size.
    """
    corners = np.array([item.box for item in record.objects], dtype=np.float64).reshape(-1, 2)
    pairs = move(corners, geometries).reshape(-1, 2, 2)
    whole = np.concatenate((pairs.min(axis=1), pairs.max(axis=1)), axis=1)
    boxes = np.clip(whole, 0, [size[1], size[0], size[1], size[0]])
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    cut: Sequence[int] = []
    if leaves((record.height, record.width), geometries, size):
        cut = np.flatnonzero(keep & (boxes != whole).any(axis=1)).tolist()
    moved: list[list[NDArray[np.float64]]] | Tensor | None = None
    if masks and not bitmasks and all(isinstance(item.segmentation, list) for item in record.objects):
        polygons = [_polygons(item.segmentation, geometries) for item in record.objects]
        for i in cut:
            polygons[i] = [part for part in (clip_polygon(polygon, *size) for polygon in polygons[i]) if part.size]
            boxes[i] = _visible(boxes[i], np.concatenate([np.zeros(0), *polygons[i]]).reshape(-1, 2))
        keep[cut] &= _is_visible(boxes[cut])
        moved = list(itertools.compress(polygons, keep))
    elif masks:
        bitmaps = [_bitmap(item, record, geometries, size) for item in record.objects]
        stacked = np.array(bitmaps, dtype=bool).reshape(-1, *size)
        keep &= stacked.any(axis=(1, 2))
        for i in cut:
            pixels = np.argwhere(stacked[i])[:, ::-1]
            boxes[i] = _visible(boxes[i], np.concatenate((pixels, pixels + 1)))
        keep[cut] &= _is_visible(boxes[cut])
        moved = torch.from_numpy(stacked[keep])
    else:
        keep[cut] &= _is_visible(boxes[cut])
    return Annotations(
        torch.from_numpy(boxes[keep]).float(),
        torch.tensor([item.label for item in record.objects], dtype=torch.int64)[torch.from_numpy(keep)],
        moved,
    )


def _is_visible(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether both sides of boxes (n, 4) XYXY have at least a pixel."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= 1)


def _visible(box: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the part of a box (4,) XYXY that points (n, 2) span; zeros if there are none."""
    if not len(points):
        return np.zeros(4)
    return np.concatenate((np.maximum(box[:2], points.min(axis=0)), np.minimum(box[2:], points.max(axis=0))))


@contextlib.contextmanager
def named(record: CocoImage) -> Iterator[None]:
    """Name the image in errors raised while it is processed.

    Raises:
        ImageError: the picture cannot be used.
        MemoryError: unchanged, because the image is not at fault.
        DatasetError: any other error was raised.
    """
    try:
        yield
    except MemoryError:
        raise
    except ImageError as error:
        raise ImageError(f"{error} (image {record.image_id})") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{record.path} (image {record.image_id}): {cause}") from error


def read_picture(record: CocoImage, intensity: Intensity | None = None) -> NDArray[np.uint8]:
    """Read the picture (H, W, 3), BGR 0-255, of an image in a data set; `intensity` scales more than 8 bits.

    Raises:
        ImageError: the file is missing, damaged, or not of the annotated size.
    """
    return read_image(record.path, (record.height, record.width), intensity)


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _polygons(
    segmentation: Segmentation | None, geometries: Sequence[tuple[Geometry, ImageSize]]
) -> list[NDArray[np.float64]]:
    polygons = segmentation if isinstance(segmentation, list) else []
    return [move(np.array(polygon, dtype=np.float64).reshape(-1, 2), geometries).reshape(-1) for polygon in polygons]


def _bitmap(
    item: CocoObject, record: CocoImage, geometries: Sequence[tuple[Geometry, ImageSize]], size: ImageSize
) -> NDArray[np.bool_]:
    """Return the changed mask; polygons are changed before they are filled."""
    if not isinstance(item.segmentation, dict):
        polygons = _polygons(item.segmentation, geometries)
        return polygons_to_mask(polygons, *size) if polygons else np.zeros(size, dtype=bool)
    mask = runs_to_mask(item.segmentation, record)
    for geometry, _ in geometries:
        mask = geometry.mask(mask)
    return mask


def runs_to_mask(runs: dict[str, Any], record: CocoImage) -> NDArray[np.bool_]:
    """Decode the mask (H, W) of a run-length encoding, compressed or not.

    Raises:
        DatasetError: the encoding does not have the image's size or is damaged.
    """
    height, width = record.height, record.width
    try:
        return decode_runs(runs, height, width)
    except ValueError as error:
        raise DatasetError(f"{record.path}: {error}") from error

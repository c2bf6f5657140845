"""Load a trained model from its file, and call it on pictures."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, resolve
from ifr.data.annotations import ImageSize
from ifr.data.catalog import CATEGORY_IDS, CLASS_NAMES
from ifr.data.classes import Classes
from ifr.data.images import read_image
from ifr.data.pixels import as_bgr
from ifr.description import take_classes, take_settings
from ifr.errors import RunError
from ifr.experiment import Experiment, load_experiment
from ifr.hosts import standalone
from ifr.hosts.model_file import load_model_file
from ifr.hosts.standalone.detector.warm_start import WarmStart
from ifr.hosts.standalone.predictor import Predictor
from ifr.overrides import given_keys
from ifr.prediction.masks import Mask, pasted
from ifr.prediction.result import Result
from ifr.prediction.tiles import Piece, Tile, merge, tiles
from ifr.prediction.video import Clip, Frame, open_clip
from ifr.processes.layout import check_device
from ifr.runs.settings import apply_tf32

Picture = str | Path | Image.Image | NDArray[Any]
_DEVICE = "MODEL.DEVICE"


class Model:
    """A trained detector that takes pictures.

    Args:
        experiment: the experiment, from a folder or a model file.
        file: the weights.
        overrides: settings that replace those of the file and the experiment, as `["KEY.SUBKEY", value, ...]`.
        device: where it runs; by default MODEL.DEVICE of the overrides, else a GPU if there is one.

    Raises:
        CheckpointError: the weights do not fit.
        ValueError: a setting does not fit.
    """

    def __init__(
        self,
        experiment: Experiment,
        file: CheckpointFile,
        overrides: Sequence[Any] = (),
        device: str | torch.device | None = None,
    ) -> None:
        """Settle the settings, build the network and load the weights."""
        config = experiment.config
        if not isinstance(config, standalone.RCNNFPNConfig):
            raise RunError("only the standalone host loads models for prediction", "set IFR_HOST=standalone")
        if experiment.file is not None:
            config.merge_from_list(list(overrides))
        else:
            take_settings(config, file, overrides)
        trained = take_classes(config, file, overrides)
        if device is not None or _DEVICE not in given_keys(overrides):
            config.merge_from_list([_DEVICE, str(device or ("cuda" if torch.cuda.is_available() else "cpu"))])
        check_device(str(config.MODEL.DEVICE))
        apply_tf32(config)
        count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
        self.config = config
        self.path = file.path
        stated = Classes.from_dict(trained) if trained and len(trained["names"]) == count else None
        self.classes = stated or _guessed(count)
        self.knows_classes = stated is not None
        """Whether the file names the classes; otherwise their names are a guess."""
        self.network = experiment.build_model(config)
        load_weights(self.network, file, allow_backbone_only=False)
        self._predictor = Predictor(self.network, config)
        self.intensity = self._predictor.intensity
        """Scales pictures of more than 8 bits; None without INPUT.INTENSITY."""

    def __repr__(self) -> str:
        """Return the file and the classes."""
        names = ", ".join(self.classes.names[:5]) + (", ..." if len(self.classes.names) > 5 else "")
        return f"<Model {self.path}: {len(self.classes.names)} classes ({names})>"

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        score: float = ...,
        bgr: bool = ...,
        tile: tuple[int, int] | None = ...,
        batch: int = ...,
    ) -> list[Result]: ...

    @overload
    def __call__(
        self,
        images: Picture,
        *,
        score: float = ...,
        bgr: bool = ...,
        tile: tuple[int, int] | None = ...,
        batch: int = ...,
    ) -> Result: ...

    def __call__(
        self,
        images: Any,
        *,
        score: float = 0.5,
        bgr: bool = False,
        tile: tuple[int, int] | None = None,
        batch: int = 4,
    ) -> Result | list[Result]:
        """Detect the objects in a picture, or in each of a list.

        Args:
            images: a path, a PIL image, or an array: (H, W, 3) uint8 RGB, or (H, W) grey; or a list of them.
            score: objects have higher scores.
            bgr: arrays of three channels are BGR, as OpenCV reads them.
            tile: (size, overlap) in pixels: detect in overlapping square tiles, and join the parts of each object. For
                pictures much larger than those of the training, with a size like theirs; objects larger than the
                overlap may stay in parts.
            batch: the most pictures or tiles that the network takes at a time. Only those of one size share a batch.

        Raises:
            ImageError: a file cannot be read as a picture.
            ValueError: an array or another argument does not fit.
        """
        many, order = isinstance(images, list | tuple), "BGR" if bgr else "RGB"
        pictures = [self._read(image, order) for image in (images if many else [images])]
        results = self._detect(pictures, score, tile, batch)
        return results if many else results[0]

    def _detect(
        self,
        pictures: Sequence[tuple[str, NDArray[np.uint8]]],
        score: float,
        tile: tuple[int, int] | None,
        batch: int,
        warm_start: WarmStart | None = None,
    ) -> list[Result]:
        """Return what is in pictures, names and pixels (H, W, 3) BGR 0-255."""
        if not 0 <= score <= 1 or batch < 1:
            raise ValueError(f"score must be from 0 to 1 and batch at least 1, got {score} and {batch}")
        if tile is not None and not (isinstance(tile, list | tuple) and len(tile) == 2):
            raise ValueError(f"tile must be (size, overlap) in pixels, got {tile!r}")
        cuts = [tiles(pixels.shape, *(tile or (max(pixels.shape), 0))) for _, pixels in pictures]
        parts = [cut.of(pixels) for (_, pixels), own in zip(pictures, cuts, strict=True) for cut in own]
        found = iter(self._predictor.detect(parts, score, batch, warm_start))
        return [
            self._result(*picture, own, list(islice(found, len(own))))
            for picture, own in zip(pictures, cuts, strict=True)
        ]

    def video(
        self,
        clip: str | Path | Clip,
        *,
        rate: float | None = None,
        score: float = 0.5,
        tile: tuple[int, int] | None = None,
        warm_start: bool = False,
    ) -> Iterator[tuple[Frame, Result]]:
        """Detect the objects in a video, frame by frame as they are asked for; no frame is kept.

        Args:
            clip: a video file, a folder of pictures, or what `open_clip` returns.
            rate: frames per second of a folder of pictures; 25 by default.
            score: objects have higher scores.
            tile: see `__call__`.
            warm_start: start the solve of each region from that in the frame before; see `WarmStart`.

        Raises:
            ImageError: the clip is missing or damaged; if so at a later frame, after those before it.
            ImportError: OpenCV is not installed.
            RunError: the mask head has no warm start.
            ValueError: an argument does not fit.
        """
        if warm_start and tile is not None:
            raise ValueError(f"warm_start takes whole frames; got tile {tile}")
        start = WarmStart(self.network) if warm_start else None
        opened = clip if isinstance(clip, Clip) else open_clip(clip, rate, self.intensity)
        return ((frame, self._detect([("", frame.image)], score, tile, 4, start)[0]) for frame in opened)

    def _read(self, image: Any, order: str) -> tuple[str, NDArray[np.uint8]]:
        """Return the name and the pixels (H, W, 3), BGR 0-255, of a picture."""
        if isinstance(image, str | Path):
            return str(image), read_image(Path(image).expanduser(), intensity=self.intensity)
        if not isinstance(image, Image.Image):
            return "", as_bgr(image, self.intensity, order)
        upright = ImageOps.exif_transpose(image)
        rgb = upright if upright.mode.startswith(("I", "F")) else upright.convert("RGB")
        return str(getattr(image, "filename", "")), as_bgr(np.asarray(rgb), self.intensity, "RGB")

    def _result(
        self, name: str, pixels: NDArray[np.uint8], cut: Sequence[Tile], found: Sequence[dict[str, Tensor]]
    ) -> Result:
        size = (pixels.shape[0], pixels.shape[1])
        has_masks = any(name in found[0] for name in ("probabilities", "masks"))
        if len(cut) == 1:
            boxes, scores, labels = (found[0][name].numpy() for name in ("boxes", "scores", "classes"))
            masks = partial(_masks, found[0], size)
            return Result(pixels, name, self.classes, boxes, scores, labels, masks if has_masks else None)
        joined = merge([piece for tile, one in zip(cut, found, strict=True) for piece in _pieces(tile, one, size)])
        boxes = np.array([piece.box for piece in joined], np.float32).reshape(-1, 4)
        scores = np.array([piece.score for piece in joined], np.float32)
        labels = np.array([piece.label for piece in joined], np.int64)
        own = [piece.mask for piece in joined]
        return Result(pixels, name, self.classes, boxes, scores, labels, (lambda: own) if has_masks else None)


def _masks(found: dict[str, Tensor], size: ImageSize) -> list[Mask]:
    if "probabilities" in found:
        return pasted(found["probabilities"], found["boxes"], size)
    return [Mask.of(full) for full in found["masks"].numpy()]


def _pieces(tile: Tile, found: dict[str, Tensor], size: ImageSize) -> list[Piece]:
    """Return the detections in a tile of a picture of `size`."""
    boxes, scores, labels = (found[name].tolist() for name in ("boxes", "scores", "classes"))
    if "probabilities" in found or "masks" in found:
        masks = _masks(found, (tile.height, tile.width))
    else:
        corners = [[round(edge) for edge in box] for box in boxes]
        masks = [Mask(np.ones((y1 - y0, x1 - x0), bool), (y0, x0), size) for x0, y0, x1, y1 in corners]
    return [
        Piece(
            tile,
            label,
            score,
            (x0 + tile.left, y0 + tile.top, x1 + tile.left, y1 + tile.top),
            Mask(mask.window, (mask.corner[0] + tile.top, mask.corner[1] + tile.left), size),
        )
        for (x0, y0, x1, y1), score, label, mask in zip(boxes, scores, labels, masks, strict=True)
    ]


def _guessed(count: int) -> Classes:
    """Return COCO's classes for 80, else classes with numbers."""
    if count == len(CLASS_NAMES):
        return Classes(CLASS_NAMES, CATEGORY_IDS)
    return Classes(tuple(f"class {label}" for label in range(count)), tuple(range(1, count + 1)))


def load(
    weights: str | Path,
    *,
    experiment: str | Path | None = None,
    device: str | torch.device | None = None,
    overrides: Sequence[Any] = (),
) -> Model:
    """Load a trained model.

    Args:
        weights: a model file: a checkpoint of IFR or its .safetensors form; or its address.
        experiment: the folder or name of the experiment, for files that do not state their settings.
        device: where it runs; by default a GPU if there is one.
        overrides: settings that replace those of the file, as `["KEY.SUBKEY", value, ...]`.

    Raises:
        CheckpointError: the file cannot be read, does not state its settings, or does not fit the experiment.
        FileNotFoundError: the experiment does not exist.
        ValueError: a setting does not fit.
    """
    own = load_model_file(weights, standalone) if experiment is None else load_experiment(experiment)
    return Model(own, own.file or read_checkpoint(resolve(weights)), overrides, device)

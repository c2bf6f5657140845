"""The videos of `ifr predict`: find them, draw the detections on their frames, and write these by frame."""

import argparse
import contextlib
import glob
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ifr.cli.pictures import number_pictures, output_files
from ifr.data.progress import SECONDS
from ifr.errors import ImageError, UserError, advise
from ifr.prediction import Frame, Model, Result
from ifr.prediction.video import SUFFIXES, Clip, ClipWriter, open_clip
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)


def is_named_clip(path: Path) -> bool:
    """Return whether a file is named like a video."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_clips(given: Sequence[str], args: argparse.Namespace) -> list[Path]:
    """List the videos of paths or globs, or the folders of frames if --fps is given; none if there are only images.

    Raises:
        UserError: images and videos are mixed, or an option does not fit what is given.
    """
    if args.fps is not None:
        folders = [Path(what).expanduser() for what in given]
        if not folders or not all(folder.is_dir() for folder in folders):
            raise UserError("--fps takes folders of images as videos; video files state their rate", "leave --fps out")
        return folders
    found = [path for what in given for path in _expanded(what)]
    clips = [path for path in found if is_named_clip(path) and path.is_file()]
    if clips and len(clips) < len(found):
        other = next(path for path in found if path not in clips)
        raise UserError(f"{clips[0]} is a video, {other} is not", "give images and videos to separate commands")
    if args.warm_start and not clips:
        raise UserError("--warm-start is for videos", "leave it out, or give --fps F for a folder of frames")
    return clips


def _expanded(what: str) -> list[Path]:
    path = Path(what).expanduser()
    return [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]


def clip_files(clips: Sequence[Path], args: argparse.Namespace) -> dict[Path, Path]:
    """Return the mp4 file of each video.

    Raises:
        UserError: an option does not fit videos, or an output file would overwrite an input.
    """
    for option, remedy in (("dataset", "leave it out"), ("format", "leave it out; videos are written as mp4")):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} is for images, and {clips[0]} is a video", remedy)
    if args.json is not None and len(clips) > 1:
        raise UserError(f"--json names one file for {len(clips)} videos", "leave it out; each has its own in --output")
    if args.warm_start and args.tile is not None:
        raise UserError("--warm-start and --tile are both given", "give one of them")
    pictures = number_pictures(clips)
    files = output_files(pictures, Path(args.output).expanduser(), ".mp4")
    return dict(zip([picture.path for picture in pictures], files, strict=True))


def predict_clips(args: argparse.Namespace, files: Mapping[Path, Path], model: Model, score: float) -> None:
    """Detect objects in videos; where one is damaged, the frames before are written and it is named at the end.

    Raises:
        UserError: a video is damaged, or OpenCV is missing.
    """
    if args.warm_start:
        head = model.config.MODEL.ROI_MASK_HEAD
        text = "--warm-start: masks whose solve does not converge in %d evaluations depend on the frames before; %s"
        logger.info(text, head.BUDGET or head.F_THRES + 1, "MODEL.ROI_MASK_HEAD.F_THRES and F_TOL decide")
    faults = []
    for path, target in files.items():
        try:
            with advise("run `pip install 'ifr[demo]'`", ImportError):
                _predict_clip(args, open_clip(path, args.fps, model.intensity), target, model, score)
        except ImageError as fault:
            logger.error("%s", fault)
            faults.append(fault)
    if faults:
        causes = "; ".join(map(str, faults))
        text = f"{len(faults)} of {len(files)} videos could not be read to the end: {causes}"
        raise UserError(text, f"{faults[0].remedy}; the frames before are written")


def _predict_clip(args: argparse.Namespace, clip: Clip, target: Path, model: Model, score: float) -> None:
    """Write the drawn video and the detections; if it is damaged or Ctrl-C is pressed, those of the frames before."""
    results = target.with_suffix(".json") if args.json is None else Path(args.json).expanduser()
    fault: ImageError | KeyboardInterrupt | None = None
    start = said = time.monotonic()
    frames = objects = 0
    with advise("choose an --output and --json that can be written", OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with results_file(results) as stream, ClipWriter(target, clip.rate) as writer:
            stream.write("[")
            try:
                for frame, found in _found(args, clip, model, score):
                    drawn = found.plot(args.labels, args.line_width, args.scale)
                    writer.write(np.asarray(drawn)[:, :, ::-1])
                    for entry in found.to_coco(frame.index):
                        text = json.dumps({**entry, "seconds": round(frame.seconds, 6)})
                        stream.write(f",\n{text}" if objects else f"\n{text}")
                        objects += 1
                    frames += 1
                    if (now := time.monotonic()) - said > SECONDS:
                        of = "" if clip.count is None else f" of {clip.count}"
                        logger.info("%s: %d%s frames, %.1f a second", clip.path, frames, of, frames / (now - start))
                        said = now
            except (ImageError, KeyboardInterrupt) as error:
                fault = error
            stream.write("\n]\n")
    rate = frames / (time.monotonic() - start)
    text = "%s: %d objects found in %d frames, %.1f frames a second, drawn in %s, written to %s"
    logger.info(text, clip.path, objects, frames, rate, target, results)
    if fault is not None:
        raise fault


def _found(args: argparse.Namespace, clip: Clip, model: Model, score: float) -> Iterator[tuple[Frame, Result]]:
    with advise("use --device cpu, or fewer pixels with INPUT.AUG.TEST_PIPELINES", torch.cuda.OutOfMemoryError):
        yield from model.video(clip, score=score, tile=args.tile, warm_start=args.warm_start)


@contextlib.contextmanager
def results_file(path: Path) -> Iterator[IO[Any]]:
    """Open a file of results for writing; a pipe or device is written directly.

    Raises:
        OSError: the file cannot be written.
    """
    direct = path.exists() and not path.is_file()
    with path.open("w") if direct else whole_file(path, "w") as file:
        yield file

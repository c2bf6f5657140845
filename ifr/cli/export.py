"""`ifr export`: writes a trained model as an ONNX or pt2 file that needs no code of IFR, and verifies the file."""

import argparse
import importlib.util
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifr.checkpoints import load_weights, read_checkpoint, resolve
from ifr.cli.experiments import find_experiment, helpful, require_standalone, trained_weights, with_budget, with_weights
from ifr.cli.pictures import find_pictures
from ifr.data.images import read_image
from ifr.data.intensity import build_intensity
from ifr.data.transforms import build_test_transform
from ifr.description import take_classes, take_settings
from ifr.errors import CheckpointError, ImageError, UserError, advise
from ifr.hosts.standalone.export import (
    ExportedDetector,
    canvas_size,
    export_program,
    model_inputs,
    onnx_bytes,
    program_bytes,
)
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)
Run = Callable[[Tensor, Tensor], Sequence[Tensor]]
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest differences between the file and the model. Rounding is far below; a wrong operator is far above.
_LIMITS = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2}


def export(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr export`; the file is written only if its outputs are those of the model.

    Raises:
        UserError: the arguments do not fit together, a package is missing, or the file computes something else.
    """
    require_standalone("export")
    output = Path(args.output).expanduser()
    kind = _kind(args, output)
    paths = find_pictures([args.input])
    detector, config, metadata = _build(args, with_budget(args, overrides))
    inputs, canvas = _inputs(paths, config, detector.divisor, args.dynamic)
    program = export_program(detector, canvas)
    if kind == "onnx":
        content, opset = onnx_bytes(program, args.opset, metadata)
        if args.opset not in (None, opset):
            raise UserError(f"torch cannot write this model in --opset {args.opset}, but in {opset}", "leave it out")
    else:
        content = program_bytes(program, metadata)
    _verify(paths, inputs, detector, _session(content) if kind == "onnx" else _loaded(content))
    with advise("choose an output that can be written", OSError), whole_file(output) as file:
        file.write(content)
    takes = f"images of 3 x {canvas[0]} x {canvas[1]}" if canvas else "images of any size"
    logger.info("%s: takes %s, %d detections, %.1f MB", output, takes, detector.detections, len(content) / 1e6)


def _kind(args: argparse.Namespace, output: Path) -> str:
    """Return "onnx" or "pt2"."""
    kind = args.format or output.suffix.removeprefix(".")
    if kind not in ("onnx", "pt2"):
        raise UserError(f"{output} has an unknown extension", "name it .onnx or .pt2, or give --format")
    if kind == "pt2" and args.opset is not None:
        raise UserError(f"--opset {args.opset} is given for a pt2 file", "leave it out, or use --format onnx")
    missing = [name for name in _PACKAGES if kind == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}, not installed", "pip install 'ifr[export]'")
    return kind


def _build(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[ExportedDetector, Any, dict[str, str]]:
    """Return the model with trained weights on the CPU, its settings, and what the file says about it."""
    experiment = find_experiment(args.experiment)
    config, overrides = experiment.config, with_weights(experiment, overrides)
    with helpful(experiment.folder), advise("give MODEL.WEIGHTS FILE trained in this experiment", CheckpointError):
        file = experiment.file or read_checkpoint(resolve(trained_weights(experiment, overrides)))
        take_settings(config, file, overrides)
        head = config.MODEL.ROI_MASK_HEAD
        if head.REFINEMENT == "implicit" and head.SOLVER == "broyden-published":
            raise UserError(
                "SOLVER 'broyden-published' stops by the norm of all regions, which the padding would change",
                "add MODEL.ROI_MASK_HEAD.SOLVER broyden",
            )
        if head.SOLVE_DTYPE:
            logger.info("the file is in float32; MODEL.ROI_MASK_HEAD.SOLVE_DTYPE %s is left out", head.SOLVE_DTYPE)
        classes = take_classes(config, file, overrides)
        config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_MASK_HEAD.SOLVE_DTYPE", ""])
        model = experiment.build_model(config)
        load_weights(model, file, allow_backbone_only=False)
        detector = ExportedDetector(model)  # type: ignore[arg-type]
    about = {"divisor": detector.divisor, "detections": detector.detections, "classes": classes}
    return detector, config, {f"ifr.{name}": json.dumps(value) for name, value in about.items()}


def _inputs(
    paths: Sequence[Path], config: Any, divisor: int, dynamic: bool
) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, int] | None]:
    """Return the model's inputs for each picture, and the size that all have unless they are dynamic."""
    transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES, config.INPUT.RESIZE)
    intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)
    with advise("replace the picture, or leave it out", ImageError):
        images = [transform(read_image(path, intensity=intensity)) for path in paths]
    canvas = None if dynamic else canvas_size([image.shape[:2] for image in images], divisor)
    inputs = [model_inputs(image, canvas or canvas_size([image.shape[:2]], divisor)) for image in images]
    return inputs, canvas


def _session(content: bytes) -> Run:
    """Return the model of an ONNX file in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # would slow the model, timed next
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor, size: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(v) for v in session.run(None, {"image": image.numpy(), "size": size.numpy()})]

    return run


def _loaded(content: bytes) -> Run:
    """Return the model of a pt2 file."""
    run: Run = torch.export.load(io.BytesIO(content)).module()
    return run


def _verify(
    paths: Sequence[Path], inputs: Sequence[tuple[Tensor, Tensor]], detector: ExportedDetector, run: Run
) -> None:
    """Compare a file with its model on pictures and print the largest differences and the times.

    Raises:
        UserError: they differ by more than rounding, or nothing was found, which would verify nothing.
    """
    worst = dict.fromkeys(_LIMITS, 0.0)
    seconds, count, failed = [0.0, 0.0], 0, []
    for first in (detector, run):  # the first run allocates
        _timed(first, *inputs[0], 0.0)
    for path, (image, size) in zip(paths, inputs, strict=True):
        wanted, seconds[0] = _timed(detector, image, size, seconds[0])
        found, seconds[1] = _timed(run, image, size, seconds[1])
        count += int((wanted[1] > 0).sum())
        differences = _differences(wanted, found)
        worst = {name: max(worst[name], differences.get(name, 0.0)) for name in worst}
        if any(value > _LIMITS[name] for name, value in differences.items()):
            failed.append(str(path))
    logger.info(
        "%d detections in %d pictures; largest differences: %s; seconds a picture: model %.3f, file %.3f",
        count,
        len(paths),
        ", ".join(f"{name} {value:.2g}" for name, value in worst.items()),
        *(total / len(paths) for total in seconds),
    )
    if failed:
        raise UserError(
            f"the file does not compute what the model computes on {len(failed)} of {len(paths)} pictures, the first "
            f"is {failed[0]}; it is not written",
            "compare other versions of torch, onnxscript and onnxruntime, and report these",
        )
    if not count:
        raise UserError(
            "the model finds nothing in these pictures, so the file could not be verified; it is not written",
            "give --input with pictures of objects, or a lower MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        )


@torch.no_grad()
def _timed(run: Run, image: Tensor, size: Tensor, before: float) -> tuple[Sequence[Tensor], float]:
    start = time.perf_counter()
    result = run(image, size)
    return result, before + time.perf_counter() - start


def _differences(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """Return the largest differences of boxes, scores and masks, infinite if a detection has no counterpart.

    A detection's counterpart is that of its class with the nearest box, because equal scores may change places.
    """
    here, there = ([values[outputs[1] > 0] for values in outputs] for outputs in (wanted, found))
    if here[0].shape != there[0].shape:
        return dict.fromkeys(_LIMITS, torch.inf)
    if not len(here[0]):
        return {}
    distance = (here[0][:, None] - there[0]).abs().amax(dim=2)
    distance = distance.masked_fill(here[2][:, None] != there[2], torch.inf)
    least, nearest = distance.min(dim=1)
    matched = bool(least.isfinite().all()) and len(set(nearest.tolist())) == len(nearest)
    names = ("boxes", "scores", "classes", "masks")
    return {
        name: float((a - b[nearest]).abs().max()) if matched else torch.inf
        for name, a, b in zip(names, here, there, strict=False)
        if name in _LIMITS
    }

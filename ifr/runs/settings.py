"""Turn the settings of config.py into those of a run: overrides, device, folder, seed, and the schedule for its batch.

The schedule of config.py is written for the SOLVER.IMS_PER_BATCH of config.py. A run with W workers trains on W *
SOLVER.IMS_PER_DEVICE images an iteration, or on the IMS_PER_BATCH given on the command line. If the two differ, the
learning rate is multiplied by the ratio of the batches, and everything counted in iterations is divided by it (P. Goyal
et al., Accurate, Large Minibatch SGD, 2017). The number of images seen, in all and in each phase, then stays the same.

Settings given on the command line are never converted. SOLVER.RESCALE = False converts nothing; the workers then share
the IMS_PER_BATCH of config.py.
"""

import copy
import logging
import operator
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ifr.checkpoints import CheckpointFile
from ifr.description import KEY, take_settings
from ifr.errors import RunError
from ifr.experiment import is_installed
from ifr.overrides import given_keys
from ifr.processes.layout import check_device
from ifr.processes.workers import Worker

logger = logging.getLogger(__name__)

ITERATIONS = (
    "SOLVER.LR_SCHEDULER.MAX_ITER",
    "SOLVER.LR_SCHEDULER.STEPS",
    "SOLVER.LR_SCHEDULER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS",
)
_LEARNING_RATE = "SOLVER.OPTIMIZER.BASE_LR"
_OUTPUT = "OUTPUT_DIR"
_DEVICE = "MODEL.DEVICE"
_TF32 = {
    True: "convolutions and products keep about 3 digits, which limits how far the mask head converges; False: 7",
    False: "float32 keeps its 7 digits; True is faster on tensor cores but keeps about 3",
}
_NO_GPU = "add MODEL.DEVICE cpu to use the CPU, or look at the driver with nvidia-smi"


def requested_device(config: Any, overrides: Sequence[Any], num_gpus: int | None = None) -> str:
    """Return MODEL.DEVICE for the run: the CPU if only config.py asks for a GPU and torch finds none.

    Args:
        config: the experiment's settings; they are not changed.
        overrides: settings on the command line.
        num_gpus: the value of --num-gpus.

    Raises:
        RunError: the command line asks for a GPU that does not exist.
        ValueError: a setting does not exist, or its value does not fit.
    """
    config = copy.deepcopy(config)
    config.merge_from_list(list(overrides))
    device = str(config.MODEL.DEVICE)
    if device.startswith("cuda") and not torch.cuda.is_available():
        if _DEVICE in given_keys(overrides):
            raise RunError(f"MODEL.DEVICE is {device!r}, but torch finds no GPU", _NO_GPU)
        if num_gpus is not None:
            raise RunError(f"--num-gpus {num_gpus}, but torch finds no GPU", _NO_GPU)
        return "cpu"
    check_device(device)
    return device


def output_folder(config: Any, folder: Path, overrides: Sequence[Any]) -> Path:
    """Return OUTPUT_DIR as an absolute path.

    In config.py, OUTPUT_DIR is relative to the experiment's folder, or for an experiment of the installed package to a
    folder of its name in the working directory; on the command line, to the working directory.

    Args:
        config: the experiment's settings; they are not changed.
        folder: the experiment's folder.
        overrides: settings on the command line.

    Raises:
        ValueError: a setting does not exist, or its value does not fit.
    """
    config = copy.deepcopy(config)
    config.merge_from_list(list(overrides))
    own = Path.cwd() / folder.name if is_installed(folder) else folder
    base = Path.cwd() if _OUTPUT in given_keys(overrides) else own
    return (base / Path(str(config.OUTPUT_DIR)).expanduser()).resolve()


def settle(
    config: Any,
    overrides: Sequence[Any],
    worker: Worker,
    device: str,
    output: Path,
    *,
    training: bool,
    file: CheckpointFile | None = None,
    folder: Path | None = None,
) -> None:
    """Change the settings of config.py to those of the run.

    Args:
        config: the experiment's settings, changed in place.
        overrides: settings on the command line.
        worker: this process.
        device: the result of `requested_device`.
        output: the result of `output_folder`.
        training: whether to convert the schedule to the batch of the run.
        file: the checkpoint to resume from or to test; the settings that it states replace those of config.py.
        folder: the experiment's folder.

    Raises:
        ValueError: a setting does not exist, or its value does not fit.
        CheckpointError: a setting of the file does not fit.
    """
    if training and file is not None and KEY in file.extras:
        _resume_settings(config, file, overrides, worker.world_size, folder)
    elif training:
        merge_and_rescale(config, overrides, worker.world_size)
    elif file is not None:
        take_settings(config, file, overrides, folder=folder)
    else:
        config.merge_from_list(list(overrides))
    config.merge_from_list([_DEVICE, str(worker.device(device))])
    config.merge_from_list([_OUTPUT, str(output)])
    if int(config.SEED) < 0:
        config.merge_from_list(["SEED", worker.from_first(lambda: torch.seed() % 2**31)])
    torch.backends.cudnn.benchmark = bool(config.CUDNN_BENCHMARK)


def _resume_settings(
    config: Any, file: CheckpointFile, overrides: Sequence[Any], world_size: int, folder: Path | None
) -> None:
    expected, reference = copy.deepcopy(config), int(config.SOLVER.IMS_PER_BATCH)
    batch = int(file.extras.get("batch_size", reference))
    expected.merge_from_list(["SOLVER.IMS_PER_BATCH", batch])
    if expected.SOLVER.RESCALE and batch != reference:
        _rescale(expected, reference, batch, set())
    take_settings(config, file, overrides, expected.as_dict(), folder)
    _share_batch(config, set(given_keys(overrides)), world_size, resumed=True)


def apply_tf32(config: Any) -> None:
    """Apply TRAINER.TF32 to float32 convolutions and matrix products of this process, and log it; only on a GPU.

    It is off by default, unlike torch's for convolutions, because the rounding error of TF32 is ten times the
    tolerances of the equilibrium and its gradient.
    """
    if not str(config.MODEL.DEVICE).startswith("cuda"):
        return
    allowed = bool(config.TRAINER.TF32)
    use_tf32(allowed)
    logger.info("TRAINER.TF32 is %s: %s", allowed, _TF32[allowed])


def use_tf32(allowed: bool) -> None:
    """Round the operands of float32 convolutions and matrix products on GPUs to TF32, in this process, or do not."""
    cudnn: Any = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch 2.10; but torch reads it and fails if the others differ
        cudnn.allow_tf32 = allowed
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if allowed else "ieee"
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def merge_and_rescale(config: Any, overrides: Sequence[Any], world_size: int) -> None:
    """Apply the settings of the command line, and convert the schedule to the batch of the run.

    Afterwards SOLVER.IMS_PER_BATCH is the number of images in an iteration, and IMS_PER_DEVICE that of each worker.

    Raises:
        ValueError: a setting does not exist, its value does not fit, or the workers cannot share the batch evenly.
    """
    reference = int(config.SOLVER.IMS_PER_BATCH)
    config.merge_from_list(list(overrides))
    given = set(given_keys(overrides))
    batch = _share_batch(config, given, world_size, resumed=False)
    if config.SOLVER.RESCALE and batch != reference:
        changes = _rescale(config, reference, batch, given)
        logger.info("%d images an iteration instead of %d: %s", batch, reference, ", ".join(changes))


def _share_batch(config: Any, given: set[str], world_size: int, *, resumed: bool) -> int:
    """Set the images of an iteration and of each worker; a resumed run keeps its batch with any number of workers."""
    solver = config.SOLVER
    batch = int(solver.IMS_PER_BATCH)
    by_device = not resumed or "SOLVER.IMS_PER_DEVICE" in given
    if solver.RESCALE and "SOLVER.IMS_PER_BATCH" not in given and by_device:
        batch = int(solver.IMS_PER_DEVICE) * world_size
    _check_batch(batch, world_size, int(solver.BATCH_SUBDIVISIONS))
    config.merge_from_list(["SOLVER.IMS_PER_BATCH", batch, "SOLVER.IMS_PER_DEVICE", batch // world_size])
    return batch


def _check_batch(batch: int, world_size: int, parts: int) -> None:
    if parts < 1:
        raise ValueError(f"SOLVER.BATCH_SUBDIVISIONS must be at least 1, got {parts}")
    if batch < 1 or batch % (world_size * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a positive multiple of workers x BATCH_SUBDIVISIONS = {world_size} x {parts}"
            f", got {batch}"
        )


def _rescale(config: Any, reference: int, batch: int, given: set[str]) -> list[str]:
    """Convert the schedule except for the given settings; return one text for each change."""
    changes = stretch(config, reference, batch, given)
    rate = float(config.SOLVER.OPTIMIZER.BASE_LR)
    if _LEARNING_RATE not in given and rate:
        config.merge_from_list([_LEARNING_RATE, rate * batch / reference])
        changes.append(f"BASE_LR {rate} -> {rate * batch / reference}")
    return changes


def stretch(config: Any, times: int, parts: int, given: set[str]) -> list[str]:
    """Multiply whatever is counted in iterations by `times / parts`, except for the given settings.

    Positive numbers stay at least 1. Returns a text for each change.
    """
    changes = []
    for key in (each for each in ITERATIONS if each not in given):
        old: int | Sequence[int] = operator.attrgetter(key)(config)
        if old:
            new = _stretched(old, times, parts)
            config.merge_from_list([key, new])
            changes.append(f"{key.rpartition('.')[2]} {old} -> {new}")
    return changes


def _stretched(count: int | Sequence[int], times: int, parts: int) -> int | list[int]:
    if isinstance(count, int):
        return max(count * times // parts, 1) if count > 0 else count
    return [max(int(step) * times // parts, 1) if step > 0 else int(step) for step in count]

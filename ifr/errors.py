"""Errors for users: each says what went wrong and what to do about it."""

import contextlib
import errno
import signal
from collections.abc import Iterator
from pathlib import Path

_LONGEST_TEXT = 3000  # characters; four such texts fit in a pipe in any encoding
_WRITABLE = "choose an OUTPUT_DIR that can be written, with space left"
_LESS_MEMORY = (
    "lower SOLVER.IMS_PER_BATCH or the sizes in INPUT.AUG.TRAIN_PIPELINES, raise SOLVER.BATCH_SUBDIVISIONS, or set "
    "TRAINER.FP16.ENABLED True"
)
_LOWER_RATE = "lower SOLVER.OPTIMIZER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True"
_OPEN_FILES = "raise the limit of open files (`ulimit -n 4096`), or lower DATALOADER.NUM_WORKERS"
_REMEDIES = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOMEM: _LESS_MEMORY,
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`), or lower DATALOADER.NUM_WORKERS",
    errno.ENOSPC: "free some space, or choose an OUTPUT_DIR with space left",
    errno.EDQUOT: "free some space, or choose an OUTPUT_DIR with space left",
    errno.EIO: "check the disk; --resume goes on from the last checkpoint",
}
_REPORT = "run it again with --debug and report the traceback"


class UserError(Exception):
    """An error that the user can do something about.

    Args:
        cause: what went wrong, in one line; it names the file, setting or argument at fault.
        remedy: what to do about it; by default the remedy of the class.
    """

    remedy = "correct the argument or setting that it names"
    exit_code = 1

    def __init__(self, cause: str, remedy: str | None = None) -> None:
        self.cause = shortened(cause)
        super().__init__(self.cause)
        if remedy is not None:
            self.remedy = shortened(remedy)


class ConfigError(UserError, ValueError):
    """A setting does not exist, or its value does not fit."""

    remedy = "the experiment's config.py has some settings, and `ifr settings` lists all"


class RunError(UserError, ValueError):
    """A run cannot start or continue."""


class DatasetError(UserError, ValueError):
    """A data set cannot be found or used; the cause names the file."""

    remedy = "set DATASETS.TRAIN, DATASETS.TEST or IFR_DATASETS; `ifr data inspect` shows a data set"


class ImageError(UserError, ValueError):
    """A file cannot be read as a picture; the cause names the file."""

    remedy = "replace the picture, or remove it from the annotation file; `ifr data check` finds all such pictures"


class CheckpointError(UserError, ValueError):
    """A checkpoint file cannot be used; the cause names the file.

    Args:
        path: the file.
        cause: what is wrong with the file; it may quote the file.
        remedy: what to do about it; by default the remedy of the class.
    """

    remedy = "give another MODEL.WEIGHTS"

    def __init__(self, path: str | Path, cause: str, remedy: str | None = None) -> None:
        super().__init__(f"{path}: {' '.join(shortened(cause).split())}", remedy)
        self.path = str(path)


class CheckpointWriteError(CheckpointError):
    """A checkpoint file cannot be written."""

    remedy = _WRITABLE


class EvaluationError(UserError, RuntimeError):
    """A detector failed on an image; the cause names the image."""

    def __init__(self, cause: str) -> None:
        remedy = _REPORT
        if any(name in cause for name in ("OutOfMemoryError", "MemoryError", "DefaultCPUAllocator")):
            remedy = "lower the sizes in INPUT.AUG.TEST_PIPELINES"
        super().__init__(cause, f"{remedy}, or use MODEL.DEVICE cpu" if "OutOfMemoryError" in cause else remedy)


class WorkerError(UserError, RuntimeError):
    """A worker process ended without an error message; the cause names the worker."""

    def __init__(self, cause: str) -> None:
        remedy = "run it again with --debug and report what it prints"
        if "was killed by SIGKILL" in cause:
            remedy = (
                "if nobody killed it, the machine ran out of memory: lower DATALOADER.NUM_WORKERS or "
                "SOLVER.IMS_PER_BATCH"
            )
        super().__init__(cause, f"{remedy}; --resume goes on from the last checkpoint")


class Stopped(UserError):
    """A signal asked the run to stop, and it stopped at the end of a step.

    Args:
        number: the signal's number.
        iteration: the iterations done.
        saved: the checkpoint written at the end; None if there was nothing to save yet.
    """

    def __init__(self, number: int, iteration: int, saved: str | None) -> None:
        where = f"after {iteration} iterations, saved in {saved}" if saved else "before there was anything to save"
        remedy = "the same command with --resume goes on from there" if saved else "start it again"
        super().__init__(f"by {signal.Signals(number).name} {where}", remedy)
        self.number, self.iteration, self.saved = number, iteration, saved
        self.exit_code = 128 + number  # like shells: 143 for SIGTERM, 130 for Ctrl-C


class NonFiniteError(UserError, FloatingPointError):
    """A loss or gradient is not finite; the update was not applied, and the step is saved so that it can be repeated.

    Args:
        cause: what is not finite, with every loss and the images of the batch.
        saved: the folder to pass to `ifr.hosts.standalone.engine.failures.repeat`; None if it could not be written.
    """

    remedy = f"{_LOWER_RATE}, then --resume: the checkpoints are sound; docs/trust.md says how to repeat the step"

    def __init__(self, cause: str, saved: str | None) -> None:
        super().__init__(f"{cause}; {f'saved in {saved}' if saved else 'it could not be saved'}")
        self.saved = saved


class MmdetError(UserError, ImportError):
    """mmdetection is missing or cannot be imported; `__cause__` is the original error."""


class CvpodsError(UserError, ImportError):
    """cvpods cannot be used."""

    remedy = "set IFR_HOST=standalone to do without cvpods"


class CvpodsNotFoundError(CvpodsError):
    """cvpods is not at the place searched."""


class CvpodsBrokenError(CvpodsError):
    """cvpods exists but cannot be imported; `__cause__` is the original error."""


class CvpodsTooOldError(CvpodsError):
    """cvpods lacks something that IFR uses."""


def shortened(text: str) -> str:
    """Return a text, without its middle if it is too long."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


@contextlib.contextmanager
def advise(remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these classes into a `UserError` with this remedy, unless one brings a remedy of its own."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error), vars(error).get("remedy", remedy)) from error


def explained(error: Exception) -> UserError:
    """Return the error to show to the user: with cause and remedy if known, else with how to report it."""
    if isinstance(error, UserError):
        return error
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # the former is torch.cuda's
        return UserError(text.partition(". ")[0] or "out of memory of this machine", _LESS_MEMORY)
    if isinstance(error, FloatingPointError):
        return UserError(text, f"{_LOWER_RATE}; older checkpoints are sound")
    if isinstance(error, ValueError):
        return UserError(text)
    if isinstance(error, OSError):
        return UserError(text, _REMEDIES.get(error.errno or 0, _WRITABLE))
    # torch has no separate classes for these.
    if "Too many open files" in text or "0 items of ancdata" in text:
        return UserError(text, _OPEN_FILES)
    if "DefaultCPUAllocator" in text or "can't allocate memory" in text:
        return UserError("out of memory of this machine", _LESS_MEMORY)
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        remedy = (
            "if nobody killed it, memory ran out: lower DATALOADER.NUM_WORKERS; with 'bus error', /dev/shm is too small"
        )
        return UserError(text, remedy)
    return unexpected(error)


def unexpected(error: Exception) -> UserError:
    """Describe an unexpected error."""
    return UserError(f"{type(error).__name__}: {error}", _REPORT)

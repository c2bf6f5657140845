"""Read weights in every known format; write checkpoints that the published code can read."""

from ifr.checkpoints.fetch import resolve
from ifr.checkpoints.files import CheckpointFile, read_checkpoint
from ifr.checkpoints.load import LoadReport, load_weights
from ifr.checkpoints.save import save_checkpoint
from ifr.errors import CheckpointError, CheckpointWriteError

__all__ = [
    "CheckpointError",
    "CheckpointFile",
    "CheckpointWriteError",
    "LoadReport",
    "load_weights",
    "read_checkpoint",
    "resolve",
    "save_checkpoint",
]

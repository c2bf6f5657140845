"""Files in, files out: read the weights of every known format, write those that the published code reads."""

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

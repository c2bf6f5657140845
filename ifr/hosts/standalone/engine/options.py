"""What the command line says about a run, beside the experiment's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """How many workers there are, and where; torchrun's environment takes precedence."""

    num_gpus: int | None = None
    """Workers on each machine; None means all visible GPUs, or one worker on the CPU."""
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    """Where the workers meet, `tcp://HOST:PORT`; "auto" serves one machine."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: they contradict each other.
        """
        if self.num_gpus is not None and self.num_gpus < 1:
            raise ValueError(f"--num-gpus must be at least 1, got {self.num_gpus}")
        if not 0 <= self.machine_rank < self.num_machines:
            raise ValueError(
                f"--machine-rank must be from 0 to --num-machines - 1 = {self.num_machines - 1}, "
                f"got {self.machine_rank}"
            )
        if self.num_machines > 1 and self.dist_url == "auto":
            raise ValueError("several machines need --dist-url tcp://HOST:PORT, the same on all; got 'auto'")


@dataclass(frozen=True)
class TrainOptions:
    """How to train."""

    layout: Layout = Layout()
    resume: bool = False
    """Continue from the last checkpoint of OUTPUT_DIR if there is one."""
    overrides: Sequence[Any] = ()
    """Settings in place of those of config.py, as `["KEY.SUBKEY", value, ...]`."""


@dataclass(frozen=True)
class TestOptions:
    """How to test."""

    __test__ = False  # no test of pytest's

    layout: Layout = Layout()
    start_iter: int | None = None
    """With `end_iter`: test every checkpoint of OUTPUT_DIR from this iteration on, the final one included."""
    end_iter: int | None = None
    overrides: Sequence[Any] = ()

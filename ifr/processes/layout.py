"""Chooses the number of workers, their devices and the address where they connect."""

import logging
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch

from ifr.errors import RunError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """The number of workers and where they run; torchrun's environment takes precedence.

    Raises:
        ValueError: the numbers contradict each other.
    """

    num_gpus: int | None = None
    """Workers on each machine; None means all visible GPUs, or one worker on the CPU."""
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    """The address where the workers connect, `tcp://HOST:PORT`; "auto" works on one machine only."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_gpus is not None and self.num_gpus < 1:
            raise ValueError(f"--num-gpus must be at least 1, got {self.num_gpus}")
        if not 0 <= self.machine_rank < self.num_machines:
            raise ValueError(
                f"--machine-rank must be from 0 to --num-machines - 1 = {self.num_machines - 1}, "
                f"got {self.machine_rank}"
            )
        if self.num_machines > 1 and self.dist_url == "auto":
            raise ValueError("several machines need --dist-url tcp://HOST:PORT, the same on all; got 'auto'")

    def workers_here(self, device: str) -> int:
        """Return the number of workers on this machine for MODEL.DEVICE `device`.

        Raises:
            RunError: the machine has too few GPUs, or `device` names a single GPU for several workers.
        """
        wanted = self.num_gpus
        if not device.startswith("cuda"):
            return wanted or 1
        if device != "cuda":
            if wanted not in (None, 1):
                raise RunError(
                    f"MODEL.DEVICE = {device!r} names one GPU, which does not fit --num-gpus {wanted}",
                    "leave one of the two out",
                )
            return 1
        visible = torch.cuda.device_count()
        if wanted is not None and wanted > visible:
            raise RunError(
                f"--num-gpus {wanted}, but this machine has {visible} GPUs",
                f"give --num-gpus {visible}, or MODEL.DEVICE cpu to train on {wanted} processes of the CPU",
            )
        return wanted or max(visible, 1)

    def meeting_point(self) -> str:
        """Return the address where the workers connect; machine 0 checks that it can listen there.

        Raises:
            RunError: the address has no valid port, or the port is in use.
        """
        if self.dist_url == "auto":
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                return f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        if self.machine_rank == 0:
            _check_port(self.dist_url)
        return self.dist_url


def _check_port(url: str) -> None:
    """Check that this machine can listen at the address."""
    try:
        port = urlsplit(url).port
    except ValueError as error:
        raise RunError(f"--dist-url {url}: {error}", "give tcp://HOST:PORT with a port from 1 to 65535") from error
    if port is None:
        raise RunError(f"--dist-url {url} names no port", "give tcp://HOST:PORT, the same on all machines")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like torch
        try:
            listener.bind(("", port))
        except OSError as error:
            remedy = "give another port, or leave --dist-url out on a single machine"
            raise RunError(f"the port of {url} is in use ({error.strerror})", remedy) from error


def check_device(name: str) -> None:
    """Check that a device exists on this machine.

    Args:
        name: MODEL.DEVICE: "cpu", "cuda" for any GPU, "cuda:N", or "mps", which is experimental.

    Raises:
        RunError: it does not exist.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if name == "mps" and has_mps:
        logger.warning("MODEL.DEVICE mps is experimental: IFR is not tested on it")
    elif name not in ("cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))):
        there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus)), *["mps"] * has_mps]
        raise RunError(f"MODEL.DEVICE is {name!r}, but this machine has {', '.join(there)}", "name one of them")


def use_device(name: str) -> None:
    """Make the GPU `name` torch's current device, so that this process leaves GPU 0 alone if it has another one.

    Pinned memory, streams and `torch.cuda.synchronize` are those of the current device.

    Args:
        name: MODEL.DEVICE; only "cuda:N" changes anything.
    """
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None and torch.cuda.is_available():
        torch.cuda.set_device(device)

"""The worker processes of a run and their communication."""

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from ifr.errors import RunError, Stopped
from ifr.processes.remote_errors import RemoteError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Worker:
    """One of the processes of a run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The rank among the workers of this machine."""

    def __str__(self) -> str:
        """Return the worker's name in messages."""
        return f"worker {self.rank} of {self.world_size}"

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this worker's device for MODEL.DEVICE `name`; with "cuda", each worker has its own GPU."""
        return torch.device("cuda", self.local_rank) if name == "cuda" else torch.device(name)

    def broadcast(self, value: Any) -> Any:
        """Return the first worker's value on all workers."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def from_first(self, call: Callable[[], Result]) -> Result:
        """Call `call` in the first worker and return its result on all workers.

        Raises:
            UserError: the call failed; all workers raise it, so that none waits for the others.
        """
        if self.world_size == 1:
            return call()
        outcome: Result | RemoteError | None = None
        if self.is_first:
            try:
                outcome = call()
            except Exception as error:
                outcome = RemoteError.of(error, str(self))
        shared: Any = self.broadcast(outcome)
        if isinstance(shared, RemoteError):
            raise shared.restored()
        result: Result = shared
        return result

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, by rank, on all workers."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the workers on all workers."""
        if self.world_size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.world_size

    def wait(self) -> None:
        """Wait until all workers have made this call."""
        if self.world_size > 1:
            distributed.barrier()

    def ending(self, code: int) -> str:
        """Say how the process of this worker ended, which reported no error and has the exit code `code`."""
        if code < 0:
            # Most real-time signals have no name.
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"{self} was killed by {name}; the others were ended"
        said = f"{self} ended with code {code}"
        if code == 1:  # a worker that had begun would have reported an error
            said += ' before it began; a script must start workers below `if __name__ == "__main__":`'
        return said


def check_main_module() -> None:
    """Refuse a program that was read from stdin: Python imports the main module first in every worker.

    Raises:
        RunError: the main module has no file.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is not None and not os.path.exists(path):
        raise RunError(f"the workers cannot import the program from {path}; write it to a file, and run that")


def from_torchrun(device: str) -> Worker | None:
    """Return the worker described by torchrun's environment; None if torchrun did not start this process.

    Args:
        device: MODEL.DEVICE.

    Raises:
        ValueError: the environment is incomplete or invalid.
        RunError: torchrun started more processes than there are GPUs.
    """
    if "WORLD_SIZE" not in os.environ:
        return None
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        worker = Worker(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)))
    except (KeyError, ValueError) as error:
        raise ValueError(f"WORLD_SIZE is set, but torchrun's other variables are missing or wrong: {error}") from error
    count, visible = int(os.environ.get("LOCAL_WORLD_SIZE", worker.local_rank + 1)), torch.cuda.device_count()
    if device.startswith("cuda:") and count > 1:
        raise RunError(
            f"MODEL.DEVICE = {device!r} names one GPU, but torchrun started {count} processes here",
            "leave MODEL.DEVICE out, or give torchrun --nproc-per-node 1",
        )
    if device == "cuda" and worker.local_rank >= visible:
        raise RunError(
            f"torchrun started more than {worker.local_rank} processes here, but this machine has {visible} GPUs",
            f"give torchrun --nproc-per-node {max(visible, 1)}",
        )
    return worker


@contextlib.contextmanager
def joined(worker: Worker, url: str, device: str) -> Iterator[None]:
    """Connect the worker to the others inside the context.

    Args:
        worker: this process.
        url: the workers' address, like `init_method` of `torch.distributed.init_process_group`.
        device: MODEL.DEVICE; GPUs use NCCL, CPUs gloo.

    Raises:
        RunError: the workers cannot connect.
    """
    if worker.world_size == 1:
        yield
        return
    gpu = worker.device(device) if device.startswith("cuda") else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    try:
        store, _, _ = next(rendezvous(url, worker.rank, worker.world_size))
        # torchrun 2.14 keeps its store across restarts: new workers would find the addresses of the dead ones.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        distributed.init_process_group(
            "gloo" if gpu is None else "nccl",
            store=PrefixStore(f"attempt_{attempt}", store),
            rank=worker.rank,
            world_size=worker.world_size,
            device_id=gpu,
        )
    except distributed.DistNetworkError as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise RunError(f"the port of {url} is in use", "give another port, or leave --dist-url out") from error
        remedy = "check --dist-url, --num-machines and that every machine runs the command"
        raise RunError(f"the workers cannot connect at {url}: {error}", remedy) from error
    except distributed.DistStoreError as error:
        remedy = "check --num-machines and --machine-rank, and that every machine runs the command"
        raise RunError(f"not all workers connected at {url}: {error}", remedy) from error
    try:
        yield
    except Stopped as stopped:
        traceback.clear_frames(stopped.__traceback__)  # the frames keep the trainer alive
        _leave()
        raise
    _leave()  # not after an error: other workers may wait for this one and never leave; the process ends anyway


def _leave() -> None:
    """Leave the group together with all workers, so that no connection closes while another worker uses it."""
    # References to the group, such as DistributedDataParallel's reference cycles, keep gloo's threads alive. A thread
    # that releases its last work while Python shuts down aborts the process (seen with torch 2.14).
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()

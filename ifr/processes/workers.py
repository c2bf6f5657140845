"""The worker processes of a run and their communication."""

import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, distributed_c10d  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from ifr.errors import RunError, Stopped
from ifr.processes.layout import use_device
from ifr.processes.remote_errors import RemoteError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_CONNECTION = timedelta(minutes=5)  # for all workers to connect
_PATIENCE = timedelta(hours=6)  # for a worker that downloads, writes or scores while the others wait for it
_EXCHANGE = 30.0  # seconds for the last worker to read which GPUs the others have


@dataclass(frozen=True)
class Worker:
    """One of the processes of a run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The rank among the workers of this machine."""
    group: Any = None
    """The group for objects and for waiting, where a worker may be hours late; None is torch's default group."""

    def __str__(self) -> str:
        """Return the worker's name in messages."""
        return f"worker {self.rank} of {self.world_size}"

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this worker's device for MODEL.DEVICE `name`; with "cuda", each worker has its own GPU."""
        if name != "cuda":
            return torch.device(name)
        return torch.device("cuda", self.local_rank if torch.cuda.device_count() > 1 else 0)

    def broadcast(self, value: Any) -> Any:
        """Return the first worker's value on all workers."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.group)
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
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all workers, by rank, on the first worker; nothing on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        distributed.gather_object(value, values, dst=0, group=self.group)
        return values or []

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
            distributed.barrier(group=self.group)

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
        RunError: torchrun started more processes than there are GPUs; see also `check_gpus`.
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
    if device == "cuda" and worker.local_rank >= visible != 1:
        raise RunError(
            f"torchrun started more than {worker.local_rank} processes here, but this machine has {visible} GPUs",
            f"give torchrun --nproc-per-node {max(visible, 1)}",
        )
    return worker


def check_gpus(store: Store, worker: Worker, uuid: str) -> None:
    """Check that no two workers have the same GPU; all workers must call this.

    A worker that sees one GPU may be the only one that does, as a task of SLURM, or share it with the others.

    Args:
        store: what the workers exchange values in.
        worker: this process.
        uuid: the identity of this worker's GPU.

    Raises:
        RunError: two workers have the same GPU.
    """
    store.set(f"gpu_{worker.rank}", uuid)
    found = [store.get(f"gpu_{rank}").decode() for rank in range(worker.world_size)]
    read, end = store.add("gpus_read", 1), time.monotonic() + _EXCHANGE
    while worker.is_first and read < worker.world_size and time.monotonic() < end:  # the store may be in this process
        time.sleep(0.05)
        read = store.add("gpus_read", 0)
    for other in dict.fromkeys(found):
        ranks = [str(rank) for rank, own in enumerate(found) if own == other]
        if len(ranks) > 1:
            raise RunError(
                f"workers {' and '.join(ranks)} have the same GPU, {other}",
                "start one process for each GPU: with torchrun, lower --nproc-per-node",
            )


@contextlib.contextmanager
def joined(worker: Worker, url: str, device: str) -> Iterator[Worker]:
    """Connect the worker to the others inside the context.

    Tensors are exchanged in torch's default group, by NCCL on GPUs and by gloo on CPUs, with torch's timeouts. Objects
    have a group of their own, of gloo, in which a worker may be hours late.

    Args:
        worker: this process.
        url: the workers' address, like `init_method` of `torch.distributed.init_process_group`.
        device: MODEL.DEVICE.

    Raises:
        RunError: the workers cannot connect, or two have the same GPU.
    """
    if worker.world_size == 1:
        yield worker
        return
    gpu = worker.device(device) if device.startswith("cuda") else None
    if gpu is not None:
        use_device(str(gpu))
    try:
        store, _, _ = next(rendezvous(url, worker.rank, worker.world_size))
        # torchrun 2.14 keeps its store across restarts: new workers would find the addresses of the dead ones.
        store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if gpu is not None:
            check_gpus(store, worker, str(torch.cuda.get_device_properties(gpu).uuid))
            if worker.is_first and torch.cuda.device_count() == 1:
                logger.info("this worker sees one GPU and uses it as cuda:0; every other worker must see its own")
        backend = "gloo" if gpu is None else "nccl"
        distributed.init_process_group(
            backend, store=store, rank=worker.rank, world_size=worker.world_size, device_id=gpu
        )
        group: Any = distributed.new_group(backend="gloo", timeout=_CONNECTION)
        distributed.barrier(group=group)
        # torch 2.10 has only the private name.
        set_timeout: Any = getattr(distributed, "set_timeout", None) or distributed_c10d._set_pg_timeout
        set_timeout(_PATIENCE, group)
    except distributed.DistNetworkError as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise RunError(f"the port of {url} is in use", "give another port, or leave --dist-url out") from error
        remedy = "check --dist-url, --num-machines and that every machine runs the command"
        raise RunError(f"the workers cannot connect at {url}: {error}", remedy) from error
    except distributed.DistStoreError as error:
        remedy = "check --num-machines and --machine-rank, and that every machine runs the command"
        raise RunError(f"not all workers connected at {url}: {error}", remedy) from error
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        remedy = (
            "set GLOO_SOCKET_IFNAME on every machine to the network interface that the others can reach, such as eth0"
        )
        raise RunError(f"the workers cannot connect by gloo: {error}", remedy) from error
    try:
        yield dataclasses.replace(worker, group=group)
    except Stopped as stopped:
        traceback.clear_frames(stopped.__traceback__)  # the frames keep the trainer alive
        _leave(group)
        raise
    _leave(group)  # not after an error: other workers may wait for this one and never leave; the process ends anyway


def _leave(group: Any) -> None:
    """Leave the group together with all workers, so that no connection closes while another worker uses it."""
    # References to the group, such as DistributedDataParallel's reference cycles, keep gloo's threads alive. A thread
    # that releases its last work while Python shuts down aborts the process (seen with torch 2.14).
    gc.collect()
    distributed.barrier(group=group)
    distributed.destroy_process_group()

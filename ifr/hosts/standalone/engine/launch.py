"""Starts the workers of a run."""

import logging
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from ifr.hosts.standalone.engine.options import Layout
from ifr.hosts.standalone.engine.workers import Worker, from_torchrun, joined

Job = Callable[..., Any]


class WorkerError(RuntimeError):
    """A worker process failed; the message is its own."""


def launch(job: Job, layout: Layout, device: str, *arguments: Any) -> Any:
    """Run `job(worker, *arguments)` in every worker, and return what the one in this process returns.

    Started by torchrun, this process is one worker. Otherwise it starts those of this machine, and waits for them; a
    single worker runs in this very process.

    Args:
        job: a function of a module, so that other processes can import it.
        layout: how many workers there are.
        device: MODEL.DEVICE.
        arguments: picklable.

    Raises:
        ValueError: the layout does not fit this machine.
        WorkerError: a worker failed in a way that cannot be raised here as it is.
    """
    own = from_torchrun()
    if own is not None:
        with joined(own, "env://", device):
            return job(own, *arguments)
    count = workers_here(layout, device)
    world_size = count * layout.num_machines
    if world_size == 1:
        return job(Worker(), *arguments)
    url = layout.dist_url if layout.dist_url != "auto" else f"tcp://127.0.0.1:{_free_port()}"
    _spawn(job, layout, device, arguments, count=count, world_size=world_size, url=url)
    return None


def workers_here(layout: Layout, device: str) -> int:
    """The number of workers of this machine.

    Raises:
        ValueError: there are not so many GPUs, or a single GPU is named.
    """
    wanted = layout.num_gpus
    if not device.startswith("cuda"):
        return wanted or 1
    if device != "cuda":
        if wanted not in (None, 1):
            raise ValueError(f"MODEL.DEVICE = {device!r} names one GPU, which does not fit --num-gpus {wanted}")
        return 1
    visible = torch.cuda.device_count()
    if wanted is not None and wanted > visible:
        raise ValueError(f"--num-gpus {wanted}, but this machine has {visible} GPUs")
    return wanted or max(visible, 1)


def _spawn(
    job: Job, layout: Layout, device: str, arguments: tuple[Any, ...], *, count: int, world_size: int, url: str
) -> None:
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    first = layout.machine_rank * count
    workers = start_processes(  # type: ignore[no-untyped-call]
        _work,
        (job, first, count, world_size, url, device, arguments, errors),
        nprocs=count,
        start_method="spawn",
        join=False,
    )
    try:
        while not workers.join():
            pass
    except (ProcessRaisedException, ProcessExitedException) as failure:
        if errors.empty():
            raise WorkerError(str(failure)) from failure
        raise _restored(errors.get()) from failure
    finally:
        for process in workers.processes:  # an interrupt reaches this process alone where no terminal sends it
            process.terminate()


def _work(
    index: int,
    job: Job,
    first: int,
    count: int,
    world_size: int,
    url: str,
    device: str,
    arguments: tuple[Any, ...],
    errors: Any,
) -> None:
    """In a started process: run the job, and hand an error to the process that waits."""
    worker = Worker(first + index, world_size, index)
    logging.basicConfig(level=logging.INFO if worker.is_first else logging.WARNING, format="%(message)s")
    if not device.startswith("cuda") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    try:
        with joined(worker, url, device):
            job(worker, *arguments)
    except Exception as error:
        errors.put(_portable(error))
        raise


def _portable(error: Exception) -> bytes:
    """The error as bytes; one that cannot travel becomes a `WorkerError` of the same words."""
    try:
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is type(error):
            return data
    except Exception:  # whatever an exception's own constructor or state raises
        pass
    return pickle.dumps(WorkerError(f"{type(error).__name__}: {error}"))


def _restored(data: bytes) -> Exception:
    error = pickle.loads(data)
    return error if isinstance(error, Exception) else WorkerError(str(error))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

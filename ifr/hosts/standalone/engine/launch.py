"""Starts the workers of a run."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any
from urllib.parse import urlsplit

import torch
from torch.multiprocessing.spawn import start_processes

from ifr.hosts.standalone.engine.errors import RunError, Stopped, WorkerError
from ifr.hosts.standalone.engine.mailboxes import Mailboxes, send
from ifr.hosts.standalone.engine.options import Layout
from ifr.hosts.standalone.engine.workers import Worker, from_torchrun, joined
from ifr.hosts.standalone.portable_errors import PortableError
from ifr.hosts.standalone.signals import StopSignals, die_with_parent

Job = Callable[..., Any]

_POLL = 0.5  # seconds
_PATIENCE = 5.0  # seconds, for the others once a worker has failed


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
        RunError: the layout does not fit this machine, or the workers cannot meet.
        Stopped: a signal asked the workers to stop, which they did.
        WorkerError: a worker was killed, or ended without a word.
        ForeignError: a worker raised what cannot be raised here as it is.
    """
    own = from_torchrun()
    if own is not None:
        _check_gpu_of(own, device)
        with joined(own, "env://", device):
            return job(own, *arguments)
    count = workers_here(layout, device)
    world_size = count * layout.num_machines
    if world_size == 1:
        return job(Worker(), *arguments)
    url = layout.dist_url if layout.dist_url != "auto" else f"tcp://127.0.0.1:{_free_port()}"
    if layout.machine_rank == 0:
        _check_port(url)
    _spawn(job, layout, device, arguments, count=count, world_size=world_size, url=url)
    return None


def workers_here(layout: Layout, device: str) -> int:
    """The number of workers of this machine.

    Raises:
        RunError: there are not so many GPUs, or a single GPU is named.
    """
    wanted = layout.num_gpus
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


def _check_gpu_of(worker: Worker, device: str) -> None:
    count = int(os.environ.get("LOCAL_WORLD_SIZE", worker.local_rank + 1))
    if device.startswith("cuda:") and count > 1:
        raise RunError(
            f"MODEL.DEVICE = {device!r} names one GPU, but torchrun started {count} processes here",
            "leave MODEL.DEVICE out, or give torchrun --nproc-per-node 1",
        )
    visible = torch.cuda.device_count()
    if device == "cuda" and worker.local_rank >= visible:
        raise RunError(
            f"torchrun started more than {worker.local_rank} processes here, but this machine has {visible} GPUs",
            f"give torchrun --nproc-per-node {max(visible, 1)}",
        )


def _spawn(
    job: Job, layout: Layout, device: str, arguments: tuple[Any, ...], *, count: int, world_size: int, url: str
) -> None:
    mailboxes = Mailboxes(count)
    first = layout.machine_rank * count
    with StopSignals() as signals:
        processes = start_processes(  # type: ignore[no-untyped-call]
            _work,
            (job, first, count, world_size, url, device, arguments, mailboxes.writers),
            nprocs=count,
            start_method="spawn",
            join=False,
        ).processes
        mailboxes.open()
        try:
            failed = _wait(processes, signals)
        finally:  # also after an error here
            _end(processes)
        raised = mailboxes.errors()
    stops = [error for _, error in raised if isinstance(error, Stopped)]
    if stops:
        raise Stopped(signals.requested or stops[0].number, stops[0].iteration, stops[0].saved)
    if failed and signals.requested:
        raise Stopped(signals.requested, 0, None)
    spoke = {index for index, _ in raised}
    for index in failed:
        code = processes[index].exitcode
        if index not in spoke and code < 0:
            raise WorkerError(
                f"worker {first + index} of {world_size} was killed by {_signal_name(-code)}; the others were ended"
            )
    if raised:
        raise raised[0][1]
    if failed:
        raise WorkerError(f"worker {first + failed[0]} of {world_size} ended with code {processes[failed[0]].exitcode}")


def _wait(processes: Sequence[Any], signals: StopSignals) -> list[int]:
    """Wait for all, or for the first that fails; returns those that failed of themselves.

    A signal to this process is passed on, once.
    """
    passed_on = False
    while True:
        if signals.requested and not passed_on:
            passed_on = True
            for process in processes:
                process.terminate()
        failed = [index for index, process in enumerate(processes) if process.exitcode]
        if failed:
            _join(processes, _PATIENCE)  # a worker that saves what a failure needs, or says what it met
            codes = [process.exitcode for process in processes]
            # A killed worker makes the others fail; it comes first, even if it is noticed a little later.
            return sorted((i for i, code in enumerate(codes) if code), key=lambda i: (codes[i] > 0, i not in failed))
        running = [process.sentinel for process in processes if process.exitcode is None]
        if not running:
            return []
        connection.wait(running, timeout=_POLL)


def _join(processes: Sequence[Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))


def _end(processes: Sequence[Any]) -> None:
    """Kill those that still run; each may be stuck waiting for another, where a mild signal does not reach it."""
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals but the first and last have no name
        return f"signal {number}"


def _work(
    index: int,
    job: Job,
    first: int,
    count: int,
    world_size: int,
    url: str,
    device: str,
    arguments: tuple[Any, ...],
    writers: Sequence[connection.Connection],
) -> None:
    """In a started process: run the job, and hand an error to the process that waits."""
    die_with_parent()
    worker = Worker(first + index, world_size, index)
    logging.basicConfig(level=logging.INFO if worker.is_first else logging.WARNING, format="%(message)s")
    if not device.startswith("cuda") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    try:
        with joined(worker, url, device):
            job(worker, *arguments)
    except Exception as error:
        send(writers, index, PortableError.of(error, f"worker {worker.rank} of {world_size}"))
        if not isinstance(error, Stopped):
            sys.exit(1)  # an error that is raised further, torch writes to a file that it leaves in /tmp


def _check_port(url: str) -> None:
    """Make sure that machine 0 can listen where the workers are to meet, before they start.

    Raises:
        RunError: the address has no port, or another program listens there.
    """
    try:
        port = urlsplit(url).port
    except ValueError as error:
        raise RunError(f"--dist-url {url}: {error}", "give tcp://HOST:PORT with a port from 1 to 65535") from error
    if port is None:
        raise RunError(f"--dist-url {url} names no port", "give tcp://HOST:PORT, the same on all machines")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does
        try:
            listener.bind(("", port))
        except OSError as error:
            remedy = "give another port, or leave --dist-url out on a single machine"
            raise RunError(f"the port of {url} is in use ({error.strerror})", remedy) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

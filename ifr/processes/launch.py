"""Starts the worker processes of a job, waits for them and raises their errors."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import start_processes

from ifr.errors import Stopped, WorkerError
from ifr.processes.layout import Layout
from ifr.processes.remote_errors import RemoteError
from ifr.processes.signals import StopSignals, die_with_parent
from ifr.processes.workers import Worker, check_main_module, from_torchrun, joined

Job = Callable[..., Any]

_POLL = 0.5  # seconds
_GRACE = 5.0  # seconds for the other workers to save or report after one has failed


def launch(job: Job, layout: Layout, device: str, *arguments: Any) -> Any:
    """Run `job(worker, *arguments)` in every worker; return the result of a worker in this process, otherwise None.

    Under torchrun, this process is one worker. Otherwise it starts the workers of this machine and waits for them; a
    single worker runs in this process.

    Args:
        job: a module-level function, so that other processes can import it.
        layout: the number of workers.
        device: MODEL.DEVICE.
        arguments: picklable arguments of the job.

    Raises:
        RunError: the layout does not fit this machine, the workers cannot connect, or the program came from stdin.
        Stopped: a signal stopped the workers.
        WorkerError: a worker was killed or ended without reporting an error.
        UserError: a worker reported an error.
    """
    own = from_torchrun(device)
    if own is not None:
        with joined(own, "env://", device) as worker:
            return job(worker, *arguments)
    count = layout.workers_here(device)
    if count * layout.num_machines == 1:
        return job(Worker(), *arguments)
    check_main_module()
    first, world_size = layout.machine_rank * count, count * layout.num_machines
    workers = [Worker(first + index, world_size, index) for index in range(count)]
    _run(job, workers, layout.meeting_point(), device, arguments)
    return None


def _run(job: Job, workers: Sequence[Worker], url: str, device: str, arguments: tuple[Any, ...]) -> None:
    """Run the job in one new process per worker and raise their first error."""
    pipes = [multiprocessing.Pipe(duplex=False) for _ in workers]
    with StopSignals() as signals:
        processes = start_processes(  # type: ignore[no-untyped-call]
            _work,
            (job, workers, url, device, arguments, [writer for _, writer in pipes]),
            nprocs=len(workers),
            start_method="spawn",
            join=False,
        ).processes
        try:
            failed = _wait(processes, signals)
        finally:
            _end(processes)
    reports = [_read(*pipe) for pipe in pipes]
    received = sorted((report for report in reports if report is not None), key=lambda report: report.moment)
    errors = [report.restored() for report in received]
    stop = next((error for error in errors if isinstance(error, Stopped)), None)
    others = [error for error in errors if not isinstance(error, Stopped)]
    # A death may have caused the others' errors; but a worker that reported its own may still abort as it exits.
    died = any(processes[index].exitcode < 0 and reports[index] is None for index in failed)
    if (stop or (failed and signals.requested)) and (died or not others):
        stop = stop or Stopped(signals.requested, 0, None)
        raise Stopped(signals.requested or stop.number, stop.iteration, stop.saved)
    for index in failed:
        code = processes[index].exitcode
        if code < 0 and reports[index] is None:
            raise WorkerError(workers[index].ending(code))
    if others:
        raise others[0]
    if failed:
        raise WorkerError(workers[failed[0]].ending(processes[failed[0]].exitcode))


def _work(
    index: int,
    job: Job,
    workers: Sequence[Worker],
    url: str,
    device: str,
    arguments: tuple[Any, ...],
    writers: Sequence[connection.Connection],
) -> None:
    """Run the job in a started process and report its error to the parent."""
    die_with_parent()
    worker = workers[index]
    logging.basicConfig(level=logging.INFO if worker.is_first else logging.WARNING, format="%(message)s")
    if not device.startswith("cuda") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // len(workers), 1))
    try:
        with joined(worker, url, device) as connected:
            job(connected, *arguments)
    except Exception as error:
        writers[index].send(RemoteError.of(error, str(worker)))
        if not isinstance(error, Stopped):
            sys.exit(1)  # torch would write a raised error to a file and leave it in /tmp


def _read(reader: connection.Connection, writer: connection.Connection) -> RemoteError | None:
    """Return what a worker reported before it ended; None if nothing, or if it was killed while sending."""
    writer.close()
    with reader, contextlib.suppress(EOFError, OSError):
        report: RemoteError = reader.recv()
        return report
    return None


def _wait(processes: Sequence[Any], signals: StopSignals) -> list[int]:
    """Wait until all workers end or one fails; return the indices that failed on their own, killed workers first.

    Forward a signal to this process once.
    """
    forwarded = False
    while True:
        if signals.requested and not forwarded:
            forwarded = True
            for process in processes:
                process.terminate()
        failed = [index for index, process in enumerate(processes) if process.exitcode]
        if failed:
            deadline = time.monotonic() + _GRACE
            for process in processes:
                process.join(max(deadline - time.monotonic(), 0))
            codes = [process.exitcode for process in processes]
            # A killed worker makes the others fail, but its end may be noticed after theirs.
            return sorted((i for i, code in enumerate(codes) if code), key=lambda i: (codes[i] > 0, i not in failed))
        running = [process.sentinel for process in processes if process.exitcode is None]
        if not running:
            return []
        connection.wait(running, timeout=_POLL)


def _end(processes: Sequence[Any]) -> None:
    """Kill the running workers: a worker that waits for another may not react to SIGTERM."""
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()

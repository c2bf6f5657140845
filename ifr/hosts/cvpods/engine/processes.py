"""Lets cvpods take part in the processes that IFR starts, on GPUs and on CPUs."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ifr.hosts.cvpods.framework import comm, runner_module
from ifr.hosts.standalone.engine.workers import Worker


def join(worker: Worker) -> None:
    """Tell cvpods which processes share a machine; all workers must call it together."""
    if worker.world_size == 1:
        return
    firsts = worker.gather(worker.rank - worker.local_rank)
    for first in sorted(set(firsts)):
        group = distributed.new_group([rank for rank, other in enumerate(firsts) if other == first])
        if first == firsts[worker.rank]:
            comm._LOCAL_PROCESS_GROUP = group


@contextlib.contextmanager
def data_parallel_on(device: torch.device) -> Iterator[None]:
    """Meanwhile a runner that is made wraps its model for this device; cvpods knows GPUs alone."""
    if device.type == "cuda":
        yield
        return
    with (
        _replaced(runner_module, "DistributedDataParallel", _without_devices),
        _replaced(torch.cuda, "set_device", lambda _: None),
    ):
        yield


@functools.wraps(DistributedDataParallel, updated=())
def _without_devices(model: torch.nn.Module, *, device_ids: Any, **settings: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, **settings)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)

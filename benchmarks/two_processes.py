"""Compare one training process with two that share each batch, one thread each, on one machine.

The detector is that of benchmarks/training_step.py, whose picture and objects are every image of the batch. Prints the
seconds of a step, and where two processes wait: for the slower of the two before the gradients are exchanged, and for
the exchange itself.

    python benchmarks/two_processes.py [--repeats 5] [--images 2] [--size 800 1066] [--objects 160] [--head conv]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from detector import own_model
from torch import distributed
from training_step import CPU, HEADS, IMPLICIT_PHASE, objects_in, sgd

from ifr.data.annotations import Annotations
from ifr.hosts.standalone.engine.trainer import Batch, Trainer
from ifr.processes.launch import launch
from ifr.processes.layout import Layout
from ifr.processes.workers import Worker


def batch_of(images: int, objects: int, size: tuple[int, int]) -> Batch:
    torch.manual_seed(0)
    boxes, classes, polygons = objects_in(objects, *size)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return [{"image": image, "instances": Annotations(boxes, classes, polygons)} for _ in range(images)]


def train(worker: Worker, args: argparse.Namespace, threads: int) -> None:
    """Time steps of this worker's share of the batch; the first worker prints."""
    torch.set_num_threads(threads)
    refinement, settings = HEADS[args.head]
    torch.manual_seed(0)
    model = own_model(CPU, refinement, settings)
    trainer = Trainer(model, sgd(model), schedule=lambda _: 0.0, worker=worker)
    batch = batch_of(args.images // worker.world_size, args.objects, tuple(args.size))
    whole, alone, wait = [], [], []
    for number in range(args.repeats + 1):
        barrier(worker)
        start = time.perf_counter()
        trainer.step(IMPLICIT_PHASE, batch)
        trainer.settle()
        step = time.perf_counter() - start
        with trainer._accumulating(last=False):  # the same gradients without an exchange
            barrier(worker)
            start = time.perf_counter()
            trainer.model.zero_grad(set_to_none=True)
            trainer._sampler.begin(trainer._seeds(IMPLICIT_PHASE, len(batch), 0, len(batch)))
            sum(trainer._losses(batch).values()).backward()
            compute = time.perf_counter() - start
            barrier(worker)
            slowest = time.perf_counter() - start
        if number:  # the first allocates
            whole.append(step)
            alone.append(compute)
            wait.append(slowest - compute)
    if worker.is_first:
        names = f"{worker.world_size} x {threads} threads"
        step, compute, waiting = (statistics.median(values) for values in (whole, alone, wait))
        rest = step - compute - waiting
        print(
            f"{args.head:9s} {args.images} images, {names:14s} {step:6.2f} s a step: gradients {compute:.2f}, "
            f"wait for the other {waiting:.2f}, exchange and update {rest:.2f}",
            flush=True,
        )


def barrier(worker: Worker) -> None:
    if worker.world_size > 1:
        distributed.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, default=160)
    parser.add_argument("--head", choices=list(HEADS), default="conv")
    args = parser.parse_args()
    for processes, threads in ((1, 1), (1, 2), (2, 1)):
        launch(train, Layout(num_gpus=processes), "cpu", args, threads)


if __name__ == "__main__":
    main()

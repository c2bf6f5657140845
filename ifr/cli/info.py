"""`ifr info`: prints what a bug report should contain."""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ifr import __version__
from ifr.data.catalog import dataset_roots
from ifr.errors import CvpodsError, UserError
from ifr.hosts import host_name
from ifr.hosts.cvpods.importing import VARIABLE

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "Pillow",
    "opencv-python-headless",
    "omegaconf",
    "safetensors",
    "pycocotools",
    "hotcoco",
    "tensorboard",
    "tqdm",
    "scikit-learn",
    "cvpods",
)


def info(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr info`.

    Raises:
        UserError: settings were given.
    """
    if overrides:
        raise UserError(f"info takes no settings, got {' '.join(overrides)}", "leave them out")
    width = max(map(len, _PACKAGES))
    for name, value in _facts():
        sys.stdout.write(f"{name:<{width}}  {value}\n")


def _facts() -> Iterator[tuple[str, str]]:
    yield "ifr", f"{__version__} in {Path(__file__).parents[1]}"
    try:
        yield "host", host_name()
    except (CvpodsError, ValueError) as error:
        yield "host", f"none: {error}"
    if VARIABLE in os.environ:
        yield VARIABLE, os.environ[VARIABLE]
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "GPU", f"none found; torch is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    yield "data sets", " or ".join(map(str, dataset_roots()))

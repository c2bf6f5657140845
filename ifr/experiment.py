"""Loads an experiment folder and builds its model."""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, resolve

_counter = itertools.count()


@dataclass(frozen=True)
class Experiment:
    """What the two files of an experiment folder define."""

    folder: Path
    config: Any
    """The settings of config.py, its own copy for every load."""
    build_model: Callable[[Any], nn.Module]
    """Of net.py: builds the model from settings."""


def load_experiment(folder_or_name: str | Path) -> Experiment:
    """Run config.py and net.py of an experiment folder.

    Args:
        folder_or_name: a folder, or the name of one in the working directory or beside the installed package.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of the two files.
        AttributeError: a file does not define `config` or `build_model`.
    """
    folder = _find(folder_or_name)
    config, net = _run(folder / "config.py"), _run(folder / "net.py")
    return Experiment(folder, _defined(config, "config"), _defined(net, "build_model"))


def build_model(
    folder_or_name: str | Path,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    overrides: Sequence[Any] = (),
) -> nn.Module:
    """The model of an experiment, in evaluation mode.

    Args:
        folder_or_name: see `load_experiment`.
        weights: a checkpoint to load; None leaves the model as it is initialised. If it says which classes it was
            trained on, the model has as many.
        device: where the model lives; by default a GPU if there is one.
        overrides: settings in place of those of config.py, as `["KEY.SUBKEY", value, ...]`.

    Raises:
        FileNotFoundError: there is no such experiment.
        ValueError: a setting or the checkpoint does not fit.
    """
    experiment = load_experiment(folder_or_name)
    config = experiment.config
    config.merge_from_list(list(overrides))
    file = None if weights is None else read_checkpoint(resolve(weights))
    if file is not None:
        take_classes(config, file, overrides)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config.merge_from_list(["MODEL.DEVICE", str(device)])
    model = experiment.build_model(config)
    if file is not None:
        load_weights(model, file)
    return model.eval()


def take_classes(config: Any, file: Path | CheckpointFile, overrides: Sequence[Any]) -> dict[str, Any] | None:
    """Give a model as many classes as a checkpoint was trained on, unless the overrides say how many.

    Args:
        config: of the model, changed in place.
        file: the checkpoint, or what `read_checkpoint` returned for it.
        overrides: settings that are already in the config, and hold against the file.

    Returns:
        The classes' "names" and "category_ids"; None if the file does not tell.

    Raises:
        CheckpointError: the file cannot be read.
    """
    checkpoint = file if isinstance(file, CheckpointFile) else read_checkpoint(file)
    trained = checkpoint.extras.get("classes")
    if trained:
        config.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", len(trained["names"]), *overrides])
    return trained


def _find(folder_or_name: str | Path) -> Path:
    candidates = [Path(folder_or_name), Path(__file__).resolve().parent.parent / folder_or_name]
    for folder in candidates:
        if folder.is_dir():
            missing = [name for name in ("config.py", "net.py") if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"the experiment {folder} has no {' and no '.join(missing)}")
            return folder.resolve()
    looked = ", ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(f"there is no experiment {str(folder_or_name)!r}; looked for {looked}")


def _run(path: Path) -> ModuleType:
    """Execute a file as a module with a name of its own, so that experiments never see each other's files."""
    name = f"ifr_experiment_{next(_counter)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _defined(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        raise AttributeError(f"{module.__file__} does not define {name!r}")
    return getattr(module, name)

"""Load an experiment's folder and build its model."""

import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, resolve
from ifr.description import take_classes, take_settings
from ifr.errors import ConfigError, UserError
from ifr.overrides import given_keys
from ifr.processes.layout import check_device, use_device

# The experiments of this package: in a wheel setup.py has copied them into it; in a clone they lie beside it.
_INSTALLED = Path(__file__).resolve().parent / "experiments"
_SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1]
_counter = itertools.count()


@dataclass(frozen=True)
class Experiment:
    """The definitions in the two files of an experiment's folder, or in a model file."""

    folder: Path
    config: Any
    """The settings from config.py; every load has its own copy."""
    build_model: Callable[[Any], nn.Module]
    """From net.py: builds the model from settings. If they name a GPU, it becomes torch's current device."""
    builder: str | None
    """The name in `ifr.hosts` of the function that net.py takes; None if net.py has its own."""
    file: CheckpointFile | None = None
    """The model file that states the settings and the model, in place of a folder's files."""
    source: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    """What loads the experiment in another process, by default from its folder, and the arguments."""

    def __reduce__(self) -> Any:
        """Pickle the experiment as its source: another process runs the two files itself."""
        return self.source or (load_experiment, (self.folder,))


def load_experiment(folder_or_name: str | Path) -> Experiment:
    """Run config.py and net.py of an experiment's folder.

    Args:
        folder_or_name: a folder, or the name of a folder in the working directory or of an experiment of the package.

    Raises:
        FileNotFoundError: the folder does not exist, or lacks one of the two files.
        ConfigError: one of them cannot be run.
        AttributeError: config.py does not define `config`, or net.py does not define `build_model`.
    """
    folder = _find(folder_or_name)
    config, net = _run(folder / "config.py"), _run(folder / "net.py")
    build = _defined(net, "build_model")

    def build_model(settings: Any) -> nn.Module:
        use_device(str(settings.MODEL.DEVICE))
        return build(settings)

    in_hosts = str(getattr(build, "__module__", "")).startswith("ifr.hosts.")
    builder = getattr(build, "__name__", None) if in_hosts else None
    return Experiment(folder, _defined(config, "config"), build_model, builder)


def build_model(
    folder_or_name: str | Path,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    overrides: Sequence[Any] = (),
) -> nn.Module:
    """Build the model of an experiment, in evaluation mode.

    Args:
        folder_or_name: see `load_experiment`.
        weights: a checkpoint to load; without it the model keeps its initial weights. The settings and the number of
            classes that the checkpoint states replace those of config.py.
        device: the model's device; by default MODEL.DEVICE from the overrides, else a GPU if there is one. A numbered
            GPU becomes torch's current device.
        overrides: settings that replace those of config.py, as `["KEY.SUBKEY", value, ...]`.

    Raises:
        FileNotFoundError: the experiment does not exist.
        ValueError: a setting or the checkpoint does not fit.
    """
    experiment = load_experiment(folder_or_name)
    config = experiment.config
    config.merge_from_list(list(overrides))
    file = None if weights is None else read_checkpoint(resolve(weights))
    if file is not None:
        take_settings(config, file, overrides)
        take_classes(config, file, overrides)
    if device is not None or "MODEL.DEVICE" not in given_keys(overrides):
        config.merge_from_list(["MODEL.DEVICE", str(device or ("cuda" if torch.cuda.is_available() else "cpu"))])
    check_device(str(config.MODEL.DEVICE))
    model = experiment.build_model(config)
    if file is not None:
        load_weights(model, file)
    return model.eval()


def experiment_folders() -> list[Path]:
    """Return the folders of the experiments in the working directory and of the package, by name."""
    found = {path.parent.name: path.parent for place in (_SHIPPED, Path.cwd()) for path in place.glob("*/config.py")}
    return [found[name] for name in sorted(found) if not _missing(found[name])]


def is_shipped(folder: Path) -> bool:
    """Return whether an experiment is found by its name from every working directory."""
    return folder.resolve().parent == _SHIPPED.resolve()


def is_installed(folder: Path) -> bool:
    """Return whether an experiment lies in the installed package, where runs must not write."""
    return folder.is_relative_to(_INSTALLED)


def _find(folder_or_name: str | Path) -> Path:
    for folder in (Path(folder_or_name).expanduser(), _SHIPPED / folder_or_name):
        if folder.is_dir():
            if missing := _missing(folder):
                raise FileNotFoundError(f"the experiment {folder} has no {' and no '.join(missing)}")
            return folder.resolve()
    found = ", ".join(path.name for path in experiment_folders())
    names = f"; found {found}" if found else ""
    looked = " and ".join(str(folder) for folder in dict.fromkeys((Path.cwd(), _SHIPPED)))
    raise FileNotFoundError(f"there is no experiment {str(folder_or_name)!r} in {looked}{names}")


def _missing(folder: Path) -> list[str]:
    return [name for name in ("config.py", "net.py") if not (folder / name).is_file()]


def _run(path: Path) -> ModuleType:
    """Execute a file as a module with a unique name, so that experiments never see each other's files."""
    name = f"ifr_experiment_{next(_counter)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}", f"correct {path}") from error
    return module


def _defined(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        raise AttributeError(f"{module.__file__} does not define {name!r}")
    return getattr(module, name)

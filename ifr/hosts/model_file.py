"""A trained model as an experiment: its file states the settings and the model, and no folder is needed."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from ifr import hosts
from ifr.checkpoints import CheckpointFile, read_checkpoint, resolve
from ifr.description import KEY, merge_settings, take_classes
from ifr.errors import CheckpointError
from ifr.experiment import Experiment
from ifr.processes.layout import use_device

_SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")
_BUILDERS = ("build_mask_rcnn", "build_cascade_rcnn")


def is_model_file(name: str | Path) -> bool:
    """Return whether this names a file or an address, rather than an experiment."""
    path = Path(name).expanduser()
    return "://" in str(name) or path.is_file() or (path.suffix in _SUFFIXES and not path.is_dir())


def load_model_file(name: str | Path, host: Any = hosts) -> Experiment:
    """Read a model file; its folder takes the place of the experiment's.

    Args:
        name: a checkpoint of IFR, also as safetensors, or its `https://` address.
        host: the package of the host that the model is built in; by default the selected one.

    Raises:
        CheckpointError: the file cannot be read, does not state its settings, or its model is not built by a host.
    """
    file = read_checkpoint(resolve(name))
    folder = Path.cwd() if "://" in str(name) else file.path.absolute().parent
    return dataclasses.replace(_experiment(file, folder, host), file=file)


def _experiment(file: CheckpointFile, folder: Path, host: Any = hosts) -> Experiment:
    description = file.extras.get(KEY)
    if description is None:
        raise CheckpointError(
            file.path,
            "it does not state its settings; IFR writes them into its checkpoints, the code of 2021 does not",
            f"name the experiment that it was trained in, with MODEL.WEIGHTS {file.path}",
        )
    builder = description["model"]
    if builder not in _BUILDERS:
        raise CheckpointError(
            file.path,
            "its model is built by the net.py of its experiment",
            f"name that experiment, with MODEL.WEIGHTS {file.path}",
        )
    config = host.RCNNFPNConfig()
    merge_settings(config, file)
    take_classes(config, file, ())
    config.merge_from_list(["OUTPUT_DIR", str(folder)])

    def build_model(settings: Any) -> nn.Module:
        use_device(str(settings.MODEL.DEVICE))
        model: nn.Module = getattr(host, builder)(settings)
        return model

    # Another process gets all but the weights, and reads the file itself.
    stated = CheckpointFile(file.path, {}, {key: file.extras[key] for key in (KEY, "classes") if key in file.extras})
    return Experiment(folder, config, build_model, builder, source=(_experiment, (stated, folder)))

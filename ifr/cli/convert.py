"""`ifr convert`: checks weights against an experiment and writes only them."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from ifr.checkpoints import load_weights, read_checkpoint, resolve, save_checkpoint
from ifr.checkpoints.names import is_published_duplicate
from ifr.checkpoints.save import published_weights
from ifr.cli.experiments import find_experiment, helpful, require_standalone
from ifr.data.classes import Classes
from ifr.description import describe, folder_stated, sizes_seen, take_classes, take_settings
from ifr.errors import CheckpointError, UserError, advise
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)


def convert(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr convert`.

    Raises:
        UserError: the weights do not fit the experiment, or the output cannot be written.
    """
    require_standalone("convert")
    output = Path(args.output).expanduser()
    if output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output {output} has an unknown extension", "use .pth or .safetensors")
    experiment = find_experiment(args.experiment)
    folder, config = experiment.folder, experiment.config
    if (experiment.file is None) == (args.weights is None):
        raise UserError("either --weights or the model file must be given", "see ifr convert --help")
    with helpful(folder), advise("give --weights that fit this experiment", CheckpointError):
        file = experiment.file or read_checkpoint(resolve(args.weights))
        take_settings(config, file, overrides)
        classes = take_classes(config, file, overrides)
        config.merge_from_list(["MODEL.DEVICE", "cpu"])
        model = experiment.build_model(config)
        load_weights(model, file, allow_backbone_only=False)
    named = None if classes is None else Classes.from_dict(classes)
    about = describe(config, experiment.builder, named, sizes_seen(file.extras), folder_stated(file.extras))
    with advise("choose an --output that can be written", CheckpointError, OSError):
        if output.suffix == ".pth":
            save_checkpoint(output, model, **about)
        else:
            _save_safetensors(output, model, about)
    count, size = int(config.MODEL.ROI_HEADS.NUM_CLASSES), output.stat().st_size / 1e6
    logger.info("%s: weights of %s, %d classes, %.1f MB", output, folder.name, count, size)


def _save_safetensors(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write each weight once: safetensors does not store the duplicate names of published files."""
    weights = published_weights(model)
    own = {key: value.contiguous() for key, value in weights.items() if not is_published_duplicate(key, weights)}
    metadata = {name: json.dumps(entry) for name, entry in about.items()}
    with whole_file(path) as file:
        file.write(save(own, metadata))  # by this, not by save_file, others may read it as any new file

"""What a checkpoint says about its model besides the weights: classes, settings, and the object sizes of training."""

from collections.abc import Mapping, Sequence
from typing import Any

from ifr.data.classes import Classes

KEY = "description"
# They belong to the machine and the folder of a run, not to its model.
PLACES = ("MODEL.DEVICE", "OUTPUT_DIR")


def describe(
    config: Any, builder: str | None, classes: Classes | None, sizes: Sequence[float] | None
) -> dict[str, Any]:
    """Return the entries of a checkpoint, plain data as JSON has it, that make it enough by itself.

    Args:
        config: the settings of the run.
        builder: the name in `ifr.hosts` of the function that builds the model; None if net.py has its own.
        classes: the classes of the model, if they are known.
        sizes: the result of `ifr.data.sizes.object_sizes` for the training data, if it is known.

    Returns:
        `classes`: "names" and "category_ids". `description`: "model", the builder; "settings", as nested dicts; and
        "sizes", the quantiles of the object sizes seen in training, in pixels of the network's input.
    """
    settings: dict[str, Any] = config.as_dict()
    for key in PLACES:
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section.pop(name)
    entries: dict[str, Any] = {} if classes is None else {"classes": classes.as_dict()}
    return {
        **entries,
        KEY: {"model": builder, "settings": settings, "sizes": None if sizes is None else list(sizes)},
    }


def sizes_seen(extras: Mapping[str, Any]) -> list[float] | None:
    """Return the object sizes of training that a checkpoint with these extras states, by `ifr.data.sizes.LEVELS`."""
    description = extras.get(KEY) or {}
    return description.get("sizes")

"""`ifr new`: writes an experiment that is fitted to a data set and to this machine."""

import argparse
import json
import logging
import shlex
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifr.cli.experiments import find_experiment
from ifr.data.annotation_file import read_annotations
from ifr.data.catalog import DatasetSource, find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.images import deep_values
from ifr.data.leaving_out import CROWD
from ifr.data.objects import objects_of
from ifr.errors import DatasetError, ImageError, UserError, advise
from ifr.experiment import is_shipped
from ifr.runs.fitting import Choice, Machine, fit

logger = logging.getLogger(__name__)

_BASES = {True: "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x", False: "mask_rcnn.ifr.res18.fpn.digits"}  # with a GPU?
_SCRIPTS = ("pods_train.sh", "pods_test.sh")
_FILES = {"TRAIN": "train.json", "TEST": "val.json"}
_VAL = 0.2  # share of the images in a split
_TAILS = (0.1, 99.9)  # percentiles of the intensities that become 0 and 255
_LOOKED_AT = 20  # pictures whose intensities are looked at
_PIXELS = 100_000  # of each of them
_WIDTH = 116  # characters of a line of settings


def new(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr new`.

    Raises:
        UserError: the data cannot be used, or the folder exists or cannot be written.
    """
    if overrides:
        raise UserError(f"unexpected argument {overrides[0]!r}", "see ifr new --help")
    folder = Path(args.name).expanduser().resolve()
    if folder.exists():
        raise UserError(f"{folder} exists", "choose another NAME, or remove it")
    machine = Machine.this()
    base = find_experiment(args.base or _BASES[bool(machine.gpus)])
    if base.file is not None:
        raise UserError(
            f"--base takes an experiment; {args.base} is a model file",
            "leave --base out or name its experiment, and train with MODEL.WEIGHTS FILE to start from its weights",
        )
    steps = base.config.INPUT.AUG.TRAIN_PIPELINES
    if is_shipped(base.folder) and "RandomFlip" not in [name for name, _ in steps]:  # that of the digits
        base.config.INPUT.AUG.TRAIN_PIPELINES = [*steps, ("RandomFlip", {})]
    if args.refinement is not None:
        base.config.MODEL.ROI_MASK_HEAD.REFINEMENT = args.refinement
    problems = advise("`ifr data check` lists all problems; see ifr new --help", DatasetError, ImageError)
    unwritten = advise("choose a NAME that can be written", OSError)
    with unwritten, tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch, problems:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        source = find_dataset(args.train)
        parts = {"TRAIN": source, "TEST": find_dataset(args.val)} if args.val else _split(source, args.seed, draft)
        dataset, marked = _open(parts["TRAIN"], base.config)
        choices = [
            _data(parts, draft, args.seed),
            *marked,
            *_refinement(args.refinement),
            *_intensity(dataset),
            *fit(base.config, objects_of([dataset], ()), machine),
        ]
        found = f"{dataset.counts.sum()} objects of {len(dataset.class_names)} classes in {len(dataset)} images"
        shipped = base.folder.name if is_shipped(base.folder) else str(base.folder)
        (draft / "config.py").write_text("\n".join(_config(f"{folder.name}: {found}", shipped, choices)) + "\n")
        shutil.copyfile(base.folder / "net.py", draft / "net.py")
        for script in _SCRIPTS:
            shutil.copyfile(find_experiment(_BASES[False]).folder / script, draft / script)
        draft.rename(folder)
    logger.info("%s, based on %s: %s", folder, base.folder.name, found)
    for choice in choices:
        logger.info("%s", choice.reason)
    logger.info("config.py has the settings; next: ifr train %s", shlex.quote(args.name))


def _split(source: DatasetSource, seed: int, folder: Path) -> dict[str, DatasetSource]:
    """Write two annotation files that share the images of a data set, and return the data sets."""
    content = read_annotations(source)
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    if len(images) < 2:
        raise DatasetError(f"{source.json} has {len(images)} images, too few to hold one out; give --val")
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    held = {images[place]["id"] for place in order[: max(round(_VAL * len(images)), 1)]}
    parts = {}
    for part, is_held in (("TRAIN", False), ("TEST", True)):
        own = [image for image in images if (image["id"] in held) == is_held]
        annotations = [item for item in content.get("annotations", ()) if (item["image_id"] in held) == is_held]
        path = folder / _FILES[part]
        path.write_text(json.dumps({**content, "images": own, "annotations": annotations}))
        parts[part] = DatasetSource(f"{source.images.name}-{path.stem}", path, source.images)
    return parts


def _data(parts: Mapping[str, DatasetSource], folder: Path, seed: int) -> Choice:
    """Name the data sets; files in the experiment's folder may move with it."""
    entries: dict[str, Any] = {}
    for part, source in parts.items():
        images, own = source.images.resolve(), source.json.parent == folder
        code = (
            f'{f"{images}:"!r} + f"{{HERE}}/{source.json.name}"' if own else repr(f"{images}:{source.json.resolve()}")
        )
        entries[f"DATASETS.{part}"] = (_Code(code),)
    if source.json.parent == folder:
        return Choice(f"One image in five is held out for testing, drawn with the seed {seed}.", entries)
    return Choice("An image folder and an annotation file each.", entries)


def _open(source: DatasetSource, config: Any) -> tuple[CocoDataset, list[Choice]]:
    """Open the training data; if all its objects are marked as crowds, choose to use them."""
    masks, crowds = bool(config.MODEL.MASK_ON), bool(config.DATASETS.CROWDS_AS_OBJECTS)
    try:
        return CocoDataset(source, masks=masks, crowds=crowds), []
    except DatasetError:
        if set(CocoDataset(source, masks=masks, crowds=crowds, keep_empty=True).left_out) != {CROWD}:
            raise
    reason = "All objects are marked as crowds (iscrowd 1), which training would leave out."
    return CocoDataset(source, masks=masks, crowds=True), [Choice(reason, {"DATASETS.CROWDS_AS_OBJECTS": True})]


def _refinement(name: str | None) -> Iterator[Choice]:
    if name is None:
        return
    reason, settings = "The mask head was given as --refinement", {"MODEL.ROI_MASK_HEAD.REFINEMENT": name}
    if name == "conv":
        reason += "; its convolutions have group norms, as in IFR's own comparisons"
        settings["MODEL.ROI_MASK_HEAD.NORM"] = "GN"
    yield Choice(f"{reason}.", settings)


def _intensity(dataset: CocoDataset) -> Iterator[Choice]:
    """Bring pictures of more than 8 bits to 8 by bounds that all pictures share."""
    step = -(-len(dataset) // _LOOKED_AT)
    values = [deep_values(dataset[place].path) for place in range(0, len(dataset), step)]
    deep = [each[np.isfinite(each)] for each in values if each is not None]
    if deep:
        some = [each[:: -(-each.size // _PIXELS) or 1] for each in deep]
        low, high = np.percentile(np.concatenate(some), _TAILS)
        yield Choice(
            f"Intensities of more than 8 bits: {_TAILS[1] - _TAILS[0]:.4g} % of the pixels lie between these bounds.",
            {"INPUT.INTENSITY.BOUNDS": (float(f"{low:.6g}"), float(f"{high if high > low else low + 1:.6g}"))},
        )


class _Code(str):
    """Python code that is written as it is."""

    def __repr__(self) -> str:
        return str(self)


def _config(title: str, base: str, choices: Sequence[Choice]) -> Iterator[str]:
    """Yield the lines of config.py."""
    title = title.replace("\\", "\\\\").replace('"', '\\"')
    yield f'"""{title}. Written by `ifr new`; edit it freely."""'
    own_files = any("{HERE}" in repr(choice.settings) for choice in choices)
    yield from ("", "from pathlib import Path") * own_files
    yield from ("", "from ifr.experiment import load_experiment", "")
    yield from ("HERE = Path(__file__).resolve().parent",) * own_files
    yield f"config = load_experiment({base!r}).config"
    yield "config.merge_from_list(["
    for choice in choices:
        yield from (f"    # {line}" for line in textwrap.wrap(choice.reason, _WIDTH - 2))
        yield from _filled(choice.settings)
    yield "])"


def _filled(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of `"KEY", value,`, as many on each as have room."""
    line = ""
    for key, value in settings.items():
        pair = f'"{key}", {value!r},'
        if line and len(line) + 1 + len(pair) > _WIDTH:
            yield f"    {line}"
            line = ""
        line = f"{line} {pair}".strip()
    yield f"    {line}"

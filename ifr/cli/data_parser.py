"""The arguments of the commands that run no model: `ifr new`, `ifr data`, `ifr experiments` and `ifr settings`."""

import argparse
from typing import Any

from ifr.cli.values import positive

DEBUG = "show the full traceback of an error"


def add_new(commands: Any) -> argparse.ArgumentParser:
    """Add `ifr new`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "new",
        help="write an experiment for a data set",
        usage="ifr new NAME --train DATASET [--val DATASET] [--base EXPERIMENT] "
        "[--refinement implicit|explicit|conv] [--seed S] [--debug]",
        description="Write the folder of an experiment whose image size, anchors, limits, batch and schedule are "
        "fitted to a data set and this machine: config.py, which gives a reason for each number, net.py and two "
        "scripts.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="folder to write")
    parser.add_argument("--train", required=True, metavar="DATASET", help="IMAGES_FOLDER:ANNOTATIONS.json to train on")
    parser.add_argument(
        "--val", metavar="DATASET", help="IMAGES_FOLDER:ANNOTATIONS.json to test on (default: a fifth of the images)"
    )
    parser.add_argument(
        "--base",
        metavar="EXPERIMENT",
        help="experiment that all other settings come from (default: a ResNet-50 with ImageNet weights on a GPU, else "
        "the small ResNet-18 of the digits)",
    )
    parser.add_argument(
        "--refinement", choices=("implicit", "explicit", "conv"), help="mask head (default: the base's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed that draws the held-out images (default 0)"
    )
    return parser


def add_data(commands: Any) -> argparse.ArgumentParser:
    """Add `ifr data` with its actions."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "data",
        help="make, inspect or check a data set",
        description="Make the digits data set of the small experiment, summarize a data set, or list its problems.",
        usage="ifr data make|inspect|check ... [--debug]",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", prog="ifr data")
    make = actions.add_parser(
        "make",
        help="make digits_train and digits_val",
        description="Make digits_train and digits_val: overlapping handwritten digits on photographs, with exact "
        "masks. Existing sets are kept if their seed and sizes are the same, otherwise replaced. The same seed and "
        "sizes always give the same files. Needs the extra demo.",
        usage="ifr data make [--root DIR] [--seed S] [--train N] [--val N] [--study]",
        allow_abbrev=False,
    )
    make.add_argument("--root", metavar="DIR", help="folder for data sets (default: $IFR_DATASETS, else datasets)")
    make.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default 0)")
    make.add_argument("--train", type=int, default=1500, metavar="N", help="number of training images (default 1500)")
    make.add_argument("--val", type=int, default=200, metavar="N", help="number of test images (default 200)")
    make.add_argument(
        "--study",
        action="store_true",
        help="also make digits_tune (500 images) and digits_report (2000), which benchmarks/study.py needs",
    )
    inspect = actions.add_parser(
        "inspect",
        help="summarize and draw a data set",
        description="Count the images, objects and classes of a data set and report missing images. With --experiment, "
        "also compare its objects with the image size, anchors and limits of an experiment, as training does when it "
        "starts, and warn of what does not fit. With --output, draw some images with their annotations, and with "
        "--augmented as training changes them. Without --experiment, it takes the settings "
        "INPUT.INTENSITY.BOUNDS and INPUT.INTENSITY.PERCENTILES only.",
        usage="ifr data inspect DATASET [--experiment EXPERIMENT [--histograms FILE] [--augmented]] "
        "[--output FILE] [--samples N] [KEY VALUE ...]",
        allow_abbrev=False,
    )
    inspect.add_argument(
        "dataset", metavar="DATASET", help="coco_2017_train, digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json"
    )
    inspect.add_argument("--experiment", metavar="EXPERIMENT", help="folder or name of an experiment to compare with")
    inspect.add_argument("--histograms", metavar="FILE", help="draw sizes, overlaps, counts and classes into FILE")
    inspect.add_argument(
        "--augmented",
        action="store_true",
        help="draw the images as INPUT.AUG.TRAIN_PIPELINES of the experiment changes them",
    )
    inspect.add_argument("--output", metavar="FILE", help="draw annotated images into FILE, such as samples.png")
    inspect.add_argument("--samples", type=positive, default=12, metavar="N", help="images to draw (default 12)")
    _add_check(actions)
    for action in actions.choices.values():
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG)
        action.set_defaults(refuse=action.error)
    return parser


def _add_check(actions: Any) -> None:
    check = actions.add_parser(
        "check",
        help="list every problem of a data set",
        description="Read a data set in COCO's format the way training does and list every problem, one line each, "
        "with the file and the ids of image and annotation. The exit code is 0 if there are none. Every image is "
        "decoded, because a truncated file can have a valid header; this takes about as long as loading one epoch, and "
        "memory for one image per worker. Notes, which are not problems, count what training skips: crowds, and "
        "objects without a mask or outside their image. Of the settings, it takes INPUT.INTENSITY.BOUNDS and "
        "INPUT.INTENSITY.PERCENTILES, which training needs for pictures of more than 8 bits.",
        usage="ifr data check DATASET [--headers] [KEY VALUE ...]",
        allow_abbrev=False,
    )
    check.add_argument(
        "dataset", metavar="DATASET", help="coco_2017_train, digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json"
    )
    check.add_argument(
        "--headers", action="store_true", help="read only the headers of images: faster, but misses damaged files"
    )


def add_experiments(commands: Any) -> argparse.ArgumentParser:
    """Add `ifr experiments`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "experiments",
        help="list the experiments",
        description="List the experiments in the working directory and those that IFR brings, with what they are.",
        usage="ifr experiments [--debug]",
        allow_abbrev=False,
    )
    return parser


def add_settings(commands: Any) -> argparse.ArgumentParser:
    """Add `ifr settings`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "settings",
        help="list settings with default and meaning",
        description="List the settings of the standalone host whose name or meaning contains PATTERN, or all.",
        usage="ifr settings [PATTERN] [--debug]",
        allow_abbrev=False,
    )
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="such as anchor or SOLVER.EMA")
    return parser

"""The arguments of every command and its `--help`."""

import argparse
import contextlib
from typing import Any

from ifr import __version__

_SETTINGS = (
    "KEY VALUE pairs change settings of the experiment, for example SOLVER.OPTIMIZER.BASE_LR 0.01; a key is one of "
    "cvpods' or IFR's, a value a Python literal or plain text."
)
_DEBUG = "show the traceback of an error"
_WORKERS = "[--num-gpus N] [--num-machines M --machine-rank R --dist-url URL]"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ifr`; what it does not know are KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        prog="ifr", description="Implicit Feature Refinement for instance segmentation.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ifr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_test, _add_predict, _add_show, _add_data, _add_convert, _add_info):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help=_DEBUG)
        command.set_defaults(refuse=command.error)
    return parser


def _add_train(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "train",
        help="train an experiment",
        usage=f"ifr train EXPERIMENT {_WORKERS} [--resume] [--debug] [KEY VALUE ...]",
        description="Train an experiment on DATASETS.TRAIN and leave log.txt, metrics.json, config.yaml and the "
        "checkpoints in OUTPUT_DIR. "
        + _SETTINGS
        + " The schedule of config.py is meant for its own SOLVER.IMS_PER_BATCH: with "
        "another number of workers, or another IMS_PER_BATCH here, its iterations and learning rate are converted "
        "together, except those given here. SOLVER.RESCALE False converts nothing. `torchrun ... -m ifr train "
        "EXPERIMENT` works too. SIGTERM or Ctrl-C finishes the step and writes a checkpoint, from which --resume goes "
        "on; a second Ctrl-C stops at once. The exit code is 0 when training is complete, 143 after SIGTERM, 130 after "
        "Ctrl-C, 2 for wrong arguments, 1 for any other error.",
    )
    _add_workers(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint of OUTPUT_DIR, if there is one"
    )
    return parser


def _add_test(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "test",
        help="test a trained experiment",
        usage=f"ifr test EXPERIMENT {_WORKERS} [--start-iter I] [--end-iter I] [--debug] [KEY VALUE ...]",
        description="Test MODEL.WEIGHTS if it is given here, otherwise the newest checkpoint of OUTPUT_DIR, on every "
        "data set of DATASETS.TEST: the 12 COCO metrics and AP by class of boxes and masks. Results are in "
        "OUTPUT_DIR/inference. " + _SETTINGS,
    )
    _add_workers(parser)
    parser.add_argument(
        "--start-iter", type=int, metavar="I", help="test all checkpoints of OUTPUT_DIR from this iteration on"
    )
    parser.add_argument("--end-iter", type=int, metavar="I", help="... up to this one")
    return parser


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "predict",
        help="find objects in pictures",
        description="Find objects in pictures and draw them. KEY VALUE pairs change settings of the experiment; "
        "MODEL.WEIGHTS names the trained weights.",
        usage="ifr predict EXPERIMENT --input IMAGE|FOLDER|GLOB --output DIR [--score T] [--json FILE] "
        "[--device DEVICE] [--debug] [KEY VALUE ...]",
    )
    parser.add_argument("--input", required=True, metavar="WHAT", help="a picture, a folder of them, or a quoted glob")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures with what was found")
    parser.add_argument("--score", type=_probability, metavar="T", help="keep detections above it (default 0.5)")
    parser.add_argument("--json", metavar="FILE", help="also write the detections in COCO's results format")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    return parser


def _add_show(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "show",
        help="draw what a trained experiment finds beside the truth",
        usage="ifr show EXPERIMENT [--samples N] [--score T] [--debug] [KEY VALUE ...]",
        description="Draw what MODEL.WEIGHTS, or the newest checkpoint of OUTPUT_DIR, finds on the first data set of "
        "DATASETS.TEST beside the truth, and how fast solvers reach the equilibrium of its mask head, into "
        "OUTPUT_DIR/pictures. " + _SETTINGS,
    )
    parser.add_argument("--samples", type=_positive, default=8, metavar="N", help="images to draw (default 8)")
    parser.add_argument("--score", type=_probability, default=0.5, metavar="T", help="as of predict (default 0.5)")
    return parser


def _add_data(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "data",
        help="make, inspect or check a data set",
        description="Make the digits that the small experiment is trained on, or say what is in a data set, or what is "
        "wrong with it.",
        usage="ifr data make|inspect|check ... [--debug]",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", prog="ifr data")
    make = actions.add_parser(
        "make",
        help="make digits_train and digits_val",
        description="Make digits_train and digits_val, handwritten digits that overlap on photographs, with exact "
        "masks, unless they are there already; a set of other numbers is replaced. The same numbers give the same "
        "bytes. scikit-learn has the material.",
        usage="ifr data make [--root DIR] [--seed S] [--train N] [--val N]",
        allow_abbrev=False,
    )
    make.add_argument("--root", metavar="DIR", help="folder of the data sets (default: IFR_DATASETS, else datasets)")
    make.add_argument("--seed", type=int, default=0, metavar="S", help="of every random choice (default 0)")
    make.add_argument("--train", type=int, default=1500, metavar="N", help="images to train on (default 1500)")
    make.add_argument("--val", type=int, default=200, metavar="N", help="images to test on (default 200)")
    inspect = actions.add_parser(
        "inspect",
        help="count and draw what is in a data set",
        description="Count the images, objects and classes of a data set, name images that are absent, and draw some "
        "images with their annotations.",
        usage="ifr data inspect DATASET [--output FILE] [--samples N]",
        allow_abbrev=False,
    )
    inspect.add_argument(
        "dataset", metavar="DATASET", help="coco_2017_train, digits_val ..., or IMAGES_FOLDER:ANNOTATIONS.json"
    )
    inspect.add_argument("--output", metavar="FILE", help="draw annotated images into this file, such as samples.png")
    inspect.add_argument("--samples", type=_positive, default=12, metavar="N", help="how many to draw (default 12)")
    _add_check(actions)
    for action in actions.choices.values():
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG)
        action.set_defaults(refuse=action.error)
    return parser


def _add_check(actions: Any) -> None:
    check = actions.add_parser(
        "check",
        help="list everything that is wrong with a data set",
        description="Read a data set in COCO's format as training does, but to its end, and list every problem: one "
        "line each, with the file and the ids of image and annotation. The exit code is 0 if there is none. Every "
        "picture is decoded, because one that is cut short looks sound from its header; that takes about as long as "
        "one epoch of loading, and the memory of one picture for each worker. What training only leaves out (crowds, "
        "objects without a mask or outside their image) is counted in notes, which are no problems.",
        usage="ifr data check JSON IMAGES [--headers]\n       ifr data check DATASET [--headers]",
        allow_abbrev=False,
    )
    check.add_argument(
        "dataset",
        metavar="JSON|DATASET",
        help="the annotations; or coco_2017_train, digits_val ..., or IMAGES_FOLDER:ANNOTATIONS.json",
    )
    check.add_argument("images", nargs="?", metavar="IMAGES", help="the folder to which file names are relative")
    check.add_argument(
        "--headers", action="store_true", help="read the headers of the pictures alone: faster, but blind to damage"
    )


def _add_convert(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "convert",
        help="convert trained weights",
        usage="ifr convert EXPERIMENT --weights FILE --output FILE [--debug] [KEY VALUE ...]",
        description="Check that weights of any known format (cvpods' and IFR's .pth, Caffe2's .pkl, .safetensors) fit "
        "an experiment, and write them alone, without the state of the training: as .pth, which cvpods and the "
        "published code read, or as .safetensors. " + _SETTINGS,
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a file, or an https:// address")
    parser.add_argument("--output", required=True, metavar="FILE", help="ends in .pth or .safetensors")
    return parser


def _add_info(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="versions, devices and the host, for reports of defects",
        description="Say which versions, devices and host IFR finds. Put it into reports of defects.",
        usage="ifr info [--debug]",
        allow_abbrev=False,
    )
    return parser


def _command(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False, **texts)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="an experiment's folder, or its name")
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="workers on each machine (default: all visible GPUs, else the CPU)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="M", help="run the command on each of them")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="of this machine, from 0 to M - 1")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0, the same on all machines"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 was expected, got {text}")
    return value


def _probability(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1:
            return value
    raise argparse.ArgumentTypeError(f"a number from 0 to 1 was expected, got {text}")

"""The arguments of all commands and their `--help` texts."""

import argparse
import contextlib
from typing import Any

from ifr import __version__

_SETTINGS = (
    "KEY VALUE pairs override settings of the experiment, for example SOLVER.OPTIMIZER.BASE_LR 0.01. Keys are those of "
    "cvpods and IFR; a value is a Python literal or plain text."
)
_DEBUG = "show the full traceback of an error"
_WORKERS = "[--num-gpus N] [--num-machines M --machine-rank R --dist-url URL]"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `ifr`; arguments that it does not know are KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        prog="ifr", description="Implicit Feature Refinement for instance segmentation.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ifr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_test, _add_predict, _add_show, _add_data, _add_convert, _add_accelerate, _add_info):
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
        description="Train an experiment on DATASETS.TRAIN. Writes log.txt, metrics.json, config.yaml and checkpoints "
        "to OUTPUT_DIR. "
        + _SETTINGS
        + " If the number of workers or SOLVER.IMS_PER_BATCH changes the batch size of config.py, the iterations and "
        "the learning rate of the schedule are rescaled to fit, except those given on the command line; SOLVER.RESCALE "
        "False turns this off. `torchrun ... -m ifr train EXPERIMENT` also works. On SIGTERM or Ctrl-C, training "
        "finishes the step and writes a checkpoint; continue from it with --resume. A second Ctrl-C stops at once. "
        "Exit codes: 0 training is complete, 143 SIGTERM, 130 Ctrl-C, 2 wrong arguments, 1 any other error.",
    )
    _add_workers(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    return parser


def _add_test(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "test",
        help="test a trained experiment",
        usage=f"ifr test EXPERIMENT {_WORKERS} [--start-iter I] [--end-iter I] [--boxes detected|truth] [--budget N] "
        "[--debug] [KEY VALUE ...]",
        description="Test the newest checkpoint in OUTPUT_DIR, or the MODEL.WEIGHTS of the command line, on every data "
        "set in DATASETS.TEST. Reports the 12 COCO metrics and the AP of each class for boxes and masks, and writes "
        "results to OUTPUT_DIR/inference. " + _SETTINGS,
    )
    _add_workers(parser)
    parser.add_argument(
        "--start-iter", type=int, metavar="I", help="test every checkpoint in OUTPUT_DIR from iteration I on"
    )
    parser.add_argument("--end-iter", type=int, metavar="I", help="test every checkpoint up to iteration I")
    parser.add_argument(
        "--boxes",
        choices=("detected", "truth"),
        default="detected",
        help="truth: score only the mask head, by the mean IoU of masks and boundaries in the ground-truth boxes, for "
        "the true classes (standalone host; default detected)",
    )
    _add_budget(parser)
    return parser


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "predict",
        help="detect objects in images",
        description="Detect objects in images and draw them. Give trained weights as MODEL.WEIGHTS FILE. " + _SETTINGS,
        usage="ifr predict EXPERIMENT --input IMAGE|FOLDER|GLOB --output DIR [--dataset DATASET] [--score T] "
        "[--json FILE] [--format jpg|png] [--labels full|name|score|none] [--line-width PIXELS] [--scale N] "
        "[--device DEVICE] [--budget N] [--debug] [KEY VALUE ...]",
    )
    parser.add_argument("--input", metavar="WHAT", help="an image, a folder of images, or a quoted glob")
    parser.add_argument(
        "--dataset",
        metavar="DATASET",
        help="take image ids, file names and category ids from digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json, so "
        "that pycocotools can load the --json file; without --input, all its images are used",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the images with drawn detections")
    parser.add_argument("--score", type=_probability, metavar="T", help="lowest score of a detection (default 0.5)")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the drawn images (default jpg)")
    parser.add_argument(
        "--labels",
        choices=("full", "name", "score", "none"),
        default="full",
        help="what is written beside an object (default full: name and score)",
    )
    parser.add_argument(
        "--line-width", type=_natural, metavar="PIXELS", help="of the boxes, 0 for none (default: grows with the image)"
    )
    parser.add_argument(
        "--scale", type=_positive, default=1, metavar="N", help="enlarge the drawn images N times, for small images"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the detections to FILE in COCO's results format")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available, else cpu)")
    _add_budget(parser)
    return parser


def _add_show(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "show",
        help="draw detections next to the ground truth",
        usage="ifr show EXPERIMENT [--samples N] [--score T] [--debug] [KEY VALUE ...]",
        description="Draw detections on the first data set in DATASETS.TEST next to the ground truth, plot how fast "
        "solvers reach the equilibrium of the mask head, and describe it: residual, share converged, spectral radius. "
        "Uses the newest checkpoint in OUTPUT_DIR, or the MODEL.WEIGHTS of the command line; writes to "
        "OUTPUT_DIR/pictures. " + _SETTINGS,
    )
    parser.add_argument("--samples", type=_positive, default=8, metavar="N", help="images to draw (default 8)")
    parser.add_argument("--score", type=_probability, default=0.5, metavar="T", help="lowest score (default 0.5)")
    return parser


def _add_data(commands: Any) -> argparse.ArgumentParser:
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
        "sizes always give the same files. Needs scikit-learn.",
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
        description="Count the images, objects and classes of a data set and report missing images. With --output, "
        "also draw some images with their annotations. Of the settings, it takes INPUT.INTENSITY.BOUNDS and "
        "INPUT.INTENSITY.PERCENTILES.",
        usage="ifr data inspect DATASET [--output FILE] [--samples N] [KEY VALUE ...]",
        allow_abbrev=False,
    )
    inspect.add_argument(
        "dataset", metavar="DATASET", help="coco_2017_train, digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json"
    )
    inspect.add_argument("--output", metavar="FILE", help="draw annotated images into FILE, such as samples.png")
    inspect.add_argument("--samples", type=_positive, default=12, metavar="N", help="images to draw (default 12)")
    _add_check(actions)
    for action in actions.choices.values():
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG)
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
        usage="ifr data check JSON IMAGES [--headers] [KEY VALUE ...]\n"
        "       ifr data check DATASET [--headers] [KEY VALUE ...]",
        allow_abbrev=False,
    )
    check.add_argument(
        "dataset",
        metavar="JSON|DATASET",
        help="annotation file; or coco_2017_train, digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json",
    )
    check.add_argument("images", nargs="?", metavar="IMAGES", help="folder that contains the images of JSON")
    check.add_argument(
        "--headers", action="store_true", help="read only the headers of images: faster, but misses damaged files"
    )


def _add_convert(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "convert",
        help="convert trained weights",
        usage="ifr convert EXPERIMENT --weights FILE --output FILE [--debug] [KEY VALUE ...]",
        description="Check that weights fit an experiment, and write them without the training state. Reads every "
        "known format (.pth of cvpods and IFR, .pkl of Caffe2, .safetensors); writes .safetensors, or .pth, which "
        "cvpods and the published code read. " + _SETTINGS,
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a file or an https:// address")
    parser.add_argument("--output", required=True, metavar="FILE", help="output file, .pth or .safetensors")
    return parser


def _add_accelerate(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "accelerate",
        help="fit a learned start and solver to trained weights",
        usage="ifr accelerate EXPERIMENT --images FOLDER [--output FILE] [--regions N] [--device DEVICE] [--debug] "
        "MODEL.WEIGHTS FILE [KEY VALUE ...]",
        description="Fit small networks that predict the equilibrium of the implicit mask head, so that fewer "
        "evaluations of its block reach the same residual. Needs pictures, but no annotations. The networks are added "
        "to a copy of the weights, under names that the published code ignores; the weights stay as they are. Every "
        "fifth picture is kept out of the fit, and a table compares solvers on these. " + _SETTINGS,
    )
    parser.add_argument("--images", required=True, metavar="FOLDER", help="an image folder, or a quoted glob")
    parser.add_argument("--output", metavar="FILE", help="output file (default: FILE with .accelerated.pth)")
    regions = "fit to N detected objects (default 668 with 64 channels, 167 with 256)"
    parser.add_argument("--regions", type=_positive, metavar="N", help=regions)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available, else cpu)")
    return parser


def _add_info(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="print versions, devices and the host, for bug reports",
        description="Print the versions, devices and host that IFR finds. Include the output in bug reports.",
        usage="ifr info [--debug]",
        allow_abbrev=False,
    )
    return parser


def _command(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False, **texts)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder or name of an experiment")
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="workers per machine (default: one per GPU, else one on the CPU)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines; run this command on each")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="rank of this machine, 0 to M - 1")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0, the same on all machines"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=_positive,
        metavar="N",
        help="apply the block of the implicit mask head N times (MODEL.ROI_MASK_HEAD.BUDGET; default F_THRES + 1)",
    )


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _natural(text: str) -> int:
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if value >= least:
            return value
    raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")


def _probability(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1:
            return value
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")

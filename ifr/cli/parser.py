"""The arguments of all commands and their `--help` texts."""

import argparse
from typing import Any

from ifr import __version__
from ifr.cli.data_parser import DEBUG, add_data, add_experiments, add_new, add_settings
from ifr.cli.values import natural, positive, probability, rate, tile

_SETTINGS = (
    "KEY VALUE pairs override settings of the experiment, for example SOLVER.OPTIMIZER.BASE_LR 0.01. Keys are those of "
    "cvpods and IFR; a value is a Python literal or plain text."
)
_WORKERS = "[--num-gpus N] [--num-machines M --machine-rank R --dist-url URL]"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `ifr`; arguments that it does not know are KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        prog="ifr", description="Implicit Feature Refinement for instance segmentation.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ifr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(add_new, _add_train, _add_test, _add_predict, _add_show, add_data),
        *(add_experiments, add_settings, _add_convert, _add_export, _add_accelerate, _add_info),
    ):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help=DEBUG)
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
        usage=f"ifr test MODEL|EXPERIMENT {_WORKERS} [--start-iter I] [--end-iter I] [--boxes detected|truth] "
        "[--budget N] [--debug] [KEY VALUE ...]",
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
        help="detect objects in images and videos",
        description="Detect objects in images or videos and draw them, with a model file or, by MODEL.WEIGHTS FILE, "
        "with weights trained in an experiment. For a video, writes an mp4 file and the detections by frame. "
        + _SETTINGS,
        usage="ifr predict MODEL|EXPERIMENT IMAGE|FOLDER|VIDEO ... [--output DIR] [--dataset DATASET] [--score T] "
        "[--tile SIZE[,OVERLAP]] [--json FILE] [--format jpg|png] [--labels full|name|score|none] "
        "[--line-width PIXELS] [--scale N] [--fps F] [--warm-start] [--device DEVICE] [--budget N] [--debug] "
        "[KEY VALUE ...]",
    )
    parser.add_argument("--input", metavar="WHAT", help="the same as IMAGE|FOLDER|VIDEO, or a quoted glob")
    parser.add_argument("--fps", type=rate, metavar="F", help="take a folder of images as a video of F frames a second")
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="in a video, start the solve of each region from that in the frame before; this changes masks whose solve "
        "does not converge",
    )
    parser.add_argument(
        "--tile",
        type=tile,
        metavar="SIZE[,OVERLAP]",
        help="detect in square tiles of SIZE pixels and join what lies across them, for large images; neighbours share "
        "OVERLAP pixels (default a quarter of SIZE)",
    )
    parser.add_argument(
        "--dataset",
        metavar="DATASET",
        help="take image ids, file names and category ids from digits_val, ... or IMAGES_FOLDER:ANNOTATIONS.json, so "
        "that pycocotools can load the --json file; without --input, all its images are used",
    )
    parser.add_argument(
        "--output", default="found", metavar="DIR", help="folder for drawn images and videos (default found)"
    )
    parser.add_argument("--score", type=probability, metavar="T", help="lowest score of a detection (default 0.5)")
    parser.add_argument("--format", choices=("jpg", "png"), help="format of the drawn images (default jpg)")
    parser.add_argument(
        "--labels",
        choices=("full", "name", "score", "none"),
        default="full",
        help="what is written beside an object (default full: name and score)",
    )
    parser.add_argument(
        "--line-width",
        type=natural,
        metavar="PIXELS",
        help="line width of the boxes; 0 draws none (default: grows with the image)",
    )
    parser.add_argument(
        "--scale", type=positive, default=1, metavar="N", help="enlarge the drawn images N times, for small images"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write the detections to FILE in COCO's results format (default for a video: beside the mp4 file)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available, else cpu)")
    _add_budget(parser)
    return parser


def _add_show(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "show",
        help="draw detections next to the ground truth",
        usage="ifr show MODEL|EXPERIMENT [--samples N] [--score T] [--debug] [KEY VALUE ...]",
        description="Draw detections on the first data set in DATASETS.TEST next to the ground truth, plot how fast "
        "solvers reach the equilibrium of the mask head, and describe it: residual, share converged, spectral radius. "
        "Uses the newest checkpoint in OUTPUT_DIR, or the MODEL.WEIGHTS of the command line; writes to "
        "OUTPUT_DIR/pictures. " + _SETTINGS,
    )
    parser.add_argument("--samples", type=positive, default=8, metavar="N", help="images to draw (default 8)")
    parser.add_argument("--score", type=probability, metavar="T", help="lowest score (default 0.5)")
    return parser


def _add_convert(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "convert",
        help="convert trained weights",
        usage="ifr convert MODEL --output FILE [--debug] [KEY VALUE ...]\n"
        "       ifr convert EXPERIMENT --weights FILE --output FILE [--debug] [KEY VALUE ...]",
        description="Check that weights fit an experiment, and write them without the training state. Reads every "
        "known format (.pth of cvpods and IFR, .pkl of Caffe2, .safetensors); writes .safetensors, or .pth, which "
        "cvpods and the published code read. " + _SETTINGS,
    )
    parser.add_argument("--weights", metavar="FILE", help="a file or an https:// address")
    parser.add_argument("--output", required=True, metavar="FILE", help="output file, .pth or .safetensors")
    return parser


def _add_export(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "export",
        help="write a trained model as ONNX or pt2",
        usage="ifr export MODEL|EXPERIMENT FILE --input IMAGE|FOLDER|GLOB [--format onnx|pt2] [--dynamic] [--opset N] "
        "[--budget N] [--debug] [KEY VALUE ...]",
        description="Write a trained model as a file that runs without IFR: ONNX, or pt2 of torch.export. The model is "
        "a model file or, by MODEL.WEIGHTS FILE, weights trained in an experiment. Runs the file and the model on "
        "pictures, prints the largest differences and the times, and writes the file only if they agree. Masks are not "
        "pasted. The detections above MODEL.ROI_HEADS.SCORE_THRESH_TEST are padded to TEST.DETECTIONS_PER_IMAGE. "
        + _SETTINGS,
    )
    parser.add_argument("output", metavar="FILE", help="output file, .onnx or .pt2")
    parser.add_argument(
        "--input", required=True, metavar="WHAT", help="pictures to verify on: an image, a folder, or a quoted glob"
    )
    parser.add_argument("--format", choices=("onnx", "pt2"), help="file format (default: by its extension)")
    parser.add_argument(
        "--dynamic", action="store_true", help="take images of any size (default: the largest size of the pictures)"
    )
    parser.add_argument(
        "--opset", type=positive, metavar="N", help="ONNX operator set version (default: torch's, 20 in torch 2.14)"
    )
    _add_budget(parser)
    return parser


def _add_accelerate(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands,
        "accelerate",
        help="fit a learned start and solver to trained weights",
        usage="ifr accelerate MODEL|EXPERIMENT --images FOLDER [--output FILE] [--regions N] [--small] "
        "[--device DEVICE] [--debug] [KEY VALUE ...]",
        description="Fit small networks that predict the equilibrium of the implicit mask head, so that fewer "
        "evaluations of its block reach the same residual. Needs pictures, but no annotations. The networks are added "
        "to a copy of the weights, under names that the published code ignores; the weights stay as they are. Every "
        "fifth picture is kept out of the fit, and a table compares solvers on these. " + _SETTINGS,
    )
    parser.add_argument("--images", required=True, metavar="FOLDER", help="an image folder, or a quoted glob")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="output file (default: NAME.accelerated.pth beside the weights, or here for an address)",
    )
    regions = "fit to N detected objects (default 668 with 64 channels, 167 with 256)"
    parser.add_argument("--regions", type=positive, metavar="N", help=regions)
    parser.add_argument(
        "--small",
        action="store_true",
        help="fit networks that cost 0.05 evaluations of the block each, for budgets of 2 or 3",
    )
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
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="folder or name of an experiment" + (", or a model file" if name != "train" else ""),
    )
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
        type=positive,
        metavar="N",
        help="apply the block of the implicit mask head N times (MODEL.ROI_MASK_HEAD.BUDGET; default F_THRES + 1)",
    )

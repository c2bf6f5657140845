"""Measures what COCO-sized data, large pictures and crowded pictures cost, at a tenth and at full size.

Data are made from a seed in a temporary folder, each row beside its anchor in the same run. Every measurement is a
process of its own; seconds are of the CPU, and memory is the largest resident memory above that after importing.

    python benchmarks/scale.py [--rows annotations check masks crowd evaluation sizes] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detector import own_model
from scale_data import COCO_IMAGES, COCO_OBJECTS, detections, write_annotations, write_pictures

from ifr.data.catalog import DatasetSource
from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.columns_file import places
from ifr.data.masks import encode_window
from ifr.hosts.standalone.detector.paste import paste_masks, paste_windows
from ifr.hosts.standalone.evaluation.coco_evaluation import RESULTS_FILE, score, write_results
from ifr.hosts.standalone.evaluation.coco_metrics import default_backend

Measured = dict[str, float]
PICTURE, BOX, DETECTIONS = (4000, 6000), 600, 100
VAL_IMAGES, VAL_OBJECTS, PER_IMAGE = 5000, 36_000, 100
SIZES = 40


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _private() -> float:
    """Megabytes that this process shares with no other and that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1e3


@contextlib.contextmanager
def _measured(found: Measured, name: str) -> Iterator[None]:
    private, memory, started = _private(), _memory(), time.process_time()
    yield
    found[f"{name}, CPU s"] = time.process_time() - started
    found[f"{name}, peak MB"] = _memory() - memory
    found[f"{name}, kept MB"] = _private() - private


def _source(folder: Path, share: float) -> DatasetSource:
    file = folder / f"train-{share:g}.json"
    if not file.exists():
        write_annotations(file, int(COCO_IMAGES * share), int(COCO_OBJECTS * share))
    return DatasetSource("train", file, folder)


def json_anchor(folder: Path, share: float) -> Measured:
    found: Measured = {}
    source = _source(folder, share)
    with _measured(found, "json.load"), source.json.open("rb") as file:
        json.load(file)
    return found


def annotations_first(folder: Path, share: float) -> Measured:
    found: Measured = {}
    source = _source(folder, share)
    for path in places(source):
        path.unlink(missing_ok=True)
    with _measured(found, "first"):
        CocoDataset(source)
    return found


def annotations_later(folder: Path, share: float) -> Measured:
    found: Measured = {}
    with _measured(found, "later"):
        dataset = CocoDataset(_source(folder, share))
        for index in range(0, len(dataset), 100):
            dataset[index]
    return found


def check(folder: Path, share: float) -> Measured:
    """`ifr data check --headers`; the pictures are read by other processes, whose seconds are not counted."""
    found: Measured = {}
    source = _source(folder, share)
    pictures = folder / f"pictures-{share:g}"
    pictures.mkdir(exist_ok=True)
    write_pictures(pictures, int(COCO_IMAGES * share))
    with _measured(found, "check"):
        problems = sum(item.is_problem for item in check_dataset(replace(source, images=pictures), decode=False))
    assert not problems
    return found


def masks(folder: Path, share: float) -> Measured:
    """100 masks of 600 x 600 pixels in a picture of 24 megapixels, or of a tenth."""
    height, width = (int(side * math.sqrt(share)) for side in PICTURE)
    torch.manual_seed(0)
    side = int(BOX * math.sqrt(share))
    low = torch.rand(DETECTIONS, 2) * torch.tensor([width - side, height - side])
    boxes, small = torch.cat((low, low + side), dim=1), torch.rand(DETECTIONS, 28, 28)
    found: Measured = {}
    with _measured(found, "windows"):
        for window, corner in paste_windows(small, boxes, (height, width)):
            encode_window(window, corner, (height, width))
    found["windows, CPU s a megapixel of mask"] = found["windows, CPU s"] / (DETECTIONS * side**2 / 1e6)
    return found


def masks_anchor(folder: Path, share: float) -> Measured:
    """The same by pasting into the picture and pycocotools, for ten of the masks, times ten."""
    from pycocotools import mask as coco_mask

    height, width = (int(side * math.sqrt(share)) for side in PICTURE)
    side, some = int(BOX * math.sqrt(share)), DETECTIONS // 10
    low = torch.rand(some, 2) * torch.tensor([width - side, height - side])
    boxes, small = torch.cat((low, low + side), dim=1), torch.rand(some, 28, 28)
    found: Measured = {}
    with _measured(found, "whole"):
        for mask in paste_masks(small, boxes, (height, width)).numpy():
            coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {name: 10 * value for name, value in found.items()}


def crowd(folder: Path, share: float) -> Measured:
    """A step with 2,000 objects, or 200, in 800 x 800 pixels."""
    root = Path(__file__).parents[1]
    experiment = root / "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x"
    settings = ["MODEL.WEIGHTS", "", "MODEL.ROI_MASK_HEAD.REFINEMENT", "conv"]
    command = [sys.executable, str(root / "tests/helpers/many_objects.py"), str(experiment)]
    done = subprocess.run(
        [*command, str(int(2000 * share)), "800", *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
        text=True,
    )
    return {"peak of the process, MB": json.loads(done.stdout)["peak"]}


def evaluation(folder: Path, share: float) -> Measured:
    """100 detections in each of 5,000 images with 36,000 objects: write, load and score boxes and masks."""
    images = int(VAL_IMAGES * share)
    file = folder / f"val-{share:g}.json"
    write_annotations(file, images, int(VAL_OBJECTS * share), seed=1)
    dataset = CocoDataset(DatasetSource("val", file, folder), masks=False, keep_empty=True)
    results = detections(images, PER_IMAGE)
    found: Measured = {}
    with _measured(found, default_backend()):
        write_results(results, folder / RESULTS_FILE)
        score(dataset, results, masks=True)
    return found


def sizes(folder: Path, share: float, kept: str = "128") -> Measured:
    """Evaluate 40 pictures of different sizes, or 4, while oneDNN keeps 128 compiled operations."""
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = kept
    torch.manual_seed(0)
    model = own_model(torch.device("cpu"))
    found: Measured = {}
    with torch.no_grad(), _measured(found, f"{kept} kept"):
        for width in torch.randperm(534)[: int(SIZES * share)].tolist():
            model([{"image": torch.randint(256, (3, 800, 800 + width), dtype=torch.uint8)}])
    return found


def sizes_anchor(folder: Path, share: float) -> Measured:
    """The same with oneDNN's default."""
    return sizes(folder, share, "1024")


ROWS: dict[str, tuple[Callable[[Path, float], Measured], ...]] = {
    "annotations": (json_anchor, annotations_first, annotations_later),
    "check": (check,),
    "masks": (masks_anchor, masks),
    "crowd": (crowd,),
    "evaluation": (evaluation,),
    "sizes": (sizes_anchor, sizes),
}


def _run(part: str, folder: Path, share: float) -> Measured:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--part", part, "--share", str(share), "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path, help="an existing folder for the data, kept; default: a temporary one")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        torch.set_num_threads(1)
        logging.basicConfig(level=logging.WARNING)
        sys.stdout.write(json.dumps(globals()[args.part](args.folder, args.share)) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(f"torch {torch.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}")
        print(f"{'':44s} {'a tenth':>10s} {'full':>10s} {'exponent':>9s}")
        for row in args.rows:
            for part in ROWS[row]:
                tenth, full = (_run(part.__name__, args.folder or Path(temporary), share) for share in (0.1, 1))
                for name, value in full.items():
                    small = tenth[name]
                    exponent = f"{math.log10(value / small):9.2f}" if small > 0 and value > 0 else f"{'-':>9s}"
                    print(f"{row + ': ' + name:44s} {small:10.3f} {value:10.3f} {exponent}", flush=True)


if __name__ == "__main__":
    main()

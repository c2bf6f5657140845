"""Finds data sets: COCO 2017, IFR's own digits, and any other set in COCO format."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from ifr.errors import DatasetError

ROOT_VARIABLE = "IFR_DATASETS"

# The annotation file and the image folder, relative to a root.
KNOWN = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "digits_train": ("digits/annotations/instances_train.json", "digits/train"),
    "digits_val": ("digits/annotations/instances_val.json", "digits/val"),
    "digits_tune": ("digits/annotations/instances_tune.json", "digits/tune"),
    "digits_report": ("digits/annotations/instances_report.json", "digits/report"),
}
_MADE_BY = {
    **dict.fromkeys(("digits_train", "digits_val"), "make it with `ifr data make`"),
    **dict.fromkeys(("digits_tune", "digits_report"), "make it with `ifr data make --study`"),
}


@dataclass(frozen=True)
class DatasetSource:
    """Where a data set in COCO format is stored."""

    name: str
    json: Path
    """The annotation file."""
    images: Path
    """The image folder; file names in the annotations are relative to it."""


def dataset_roots() -> list[Path]:
    """Return the folders searched for known data sets, in this order.

    Only IFR_DATASETS if it is set; otherwise `datasets` in the working directory, then `datasets` beside the package.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        return [Path(root).expanduser()]
    roots = [Path.cwd() / "datasets", Path(__file__).resolve().parents[2] / "datasets"]
    return roots[:1] if roots[0] == roots[1] else roots


def find_dataset(entry: str) -> DatasetSource:
    """Find the data set that an entry of DATASETS.TRAIN or DATASETS.TEST names.

    Args:
        entry: a known name, or `IMAGES_FOLDER:ANNOTATIONS.json`; both paths may be relative to the working directory
            and may contain spaces.

    Raises:
        DatasetError: the name is unknown, or a file or folder is missing.
    """
    if entry in KNOWN:
        return _known(entry)
    if ":" in entry:
        return _custom(entry)
    near = difflib.get_close_matches(entry, KNOWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DatasetError(
        f"unknown data set {entry!r}; {hint}known are {', '.join(KNOWN)}; give any other as "
        "IMAGES_FOLDER:ANNOTATIONS.json"
    )


def _known(name: str) -> DatasetSource:
    json, images = KNOWN[name]
    roots = dataset_roots()
    for root in roots:
        if (root / json).is_file():
            if not (root / images).is_dir():
                raise DatasetError(f"{name}: {root / json} exists, but its images are not at {root / images}")
            return DatasetSource(name, root / json, root / images)
    looked = " or ".join(str(root / json) for root in roots)
    remedy = _MADE_BY.get(name, f"put it there, or set {ROOT_VARIABLE}")
    raise DatasetError(f"{name}: cannot find {looked}; {remedy}")


def _custom(entry: str) -> DatasetSource:
    """Split at the first colon that has a folder before it and a file after it: paths may contain colons."""
    parts = entry.split(":")
    splits = [(":".join(parts[:cut]), ":".join(parts[cut:])) for cut in range(1, len(parts))]
    for folder, file in splits:
        images, json = Path(folder).expanduser(), Path(file).expanduser()
        if folder and images.is_dir() and json.is_file():
            name = json.stem if json.stem == images.name else f"{images.name}-{json.stem}"
            return DatasetSource(name, json, images)
    folder, file = splits[-1]
    missing = f"no folder {folder!r}" if not Path(folder).expanduser().is_dir() or not folder else f"no file {file!r}"
    raise DatasetError(f"{entry}: expected IMAGES_FOLDER:ANNOTATIONS.json, but {Path.cwd()} has {missing}")


# fmt: off
CATEGORY_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33,
    34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61,
    62, 63, 64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)
CLASS_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

"""Mask heads on real pictures: buildings in a satellite picture, and coins; few, so the intervals are wide.

    python benchmarks/real_pictures.py make DIR --solaris WHEEL --skimage WHEEL --weights FILE FILE FILE
    python benchmarks/study.py train   DIR/grids/SET_FOLD.json --output DIR/runs/SET_FOLD     for every grid
    python benchmarks/study.py measure DIR/grids/SET_FOLD.json --output DIR/runs/SET_FOLD
    python benchmarks/real_pictures.py report DIR

The pictures come from the wheels of solaris 0.4.0 (`pip download --no-deps solaris==0.4.0`, pip before 24.1) and of
scikit-image; neither is installed. `make` cuts them into tiles in bands. Each band is tested with models that were
trained on the other bands, starting from weights trained on the digits by study.py: a FILE for each of conv_4_gn,
sharing_4 and implicit. `report` pools the bands and prints mask IoU on true boxes and mask AP of each head, with paired
differences as in protocol.md.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from study_grid import ROOT, Grid, runs_of
from study_statistics import AveragePrecision, difference, image_draws, mean_over_objects

EXPERIMENT = "benchmarks/rivals/declared"
HEADS = ("conv_4_gn", "sharing_4", "implicit")
SEEDS = 2
KEPT = 0.25  # of an object's area in a tile, at least, or it is left out
SCHEDULE = {
    "SOLVER.LR_SCHEDULER.MAX_ITER": 200,
    "SOLVER.LR_SCHEDULER.STEPS": [120, 160],
    "SOLVER.LR_SCHEDULER.WARMUP_ITERS": 20,
    "SOLVER.OPTIMIZER.BASE_LR": 0.01,
    "SOLVER.EMA.DECAY": 0.98,
    "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS": 0,
}

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A picture (H, W) uint8, the masks (H, W) of its objects, and how it is cut and trained on."""

    picture: NDArray[np.uint8]
    objects: list[Mask]
    rows: tuple[int, ...]
    """The bands lie between them."""
    tile: int
    """Width of a tile; its height divides the band evenly, at most as high as wide."""
    anchors: dict[str, Any]


def buildings(wheel: Path) -> Scene:
    """The 43 buildings of solaris' sample picture, 16 bits and half a metre a pixel."""
    with zipfile.ZipFile(wheel) as files:
        encoded = np.frombuffer(files.read("solaris/data/sample_geotiff.tif"), np.uint8)
        labels = json.loads(files.read("solaris/data/geotiff_labels.geojson"))
        (left, top), metres = _origin(files.read("solaris/data/sample_geotiff.tif"))
    raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).astype(np.float32)
    low, high = np.percentile(raw, (1, 99))
    picture = (255 * np.clip((raw - low) / (high - low), 0, 1)).astype(np.uint8)
    objects = []
    for feature in labels["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])[:, :2]
        corners = np.stack([ring[:, 0] - left, top - ring[:, 1]], axis=1) / metres
        mask = np.zeros(picture.shape, np.uint8)
        objects.append(cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1))
    anchors = {"SIZES": [[30, 46, 64]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]}
    return Scene(picture, objects, (0, 300, 600, 900), 150, anchors)


def _origin(tiff: bytes) -> tuple[tuple[float, float], float]:
    """The map coordinates of the upper left corner, and the metres of a pixel, from the tags of a GeoTIFF."""
    tags = Image.open(io.BytesIO(tiff)).tag_v2  # type: ignore[attr-defined]
    scale, tie = tags[33550], tags[33922]
    return (tie[3], tie[4]), scale[0]


def coins(wheel: Path) -> Scene:
    """scikit-image's coins, labelled by comparing each pixel with the mean of its surroundings."""
    with zipfile.ZipFile(wheel) as files:
        picture = np.array(Image.open(io.BytesIO(files.read("skimage/data/coins.png"))))
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.5)
    bright = cv2.adaptiveThreshold(smooth, 1, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 101, -8)
    closed = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    objects = [
        cv2.drawContours(np.zeros(picture.shape, np.uint8), [outline], -1, 1, cv2.FILLED)
        for outline in outlines
        if cv2.contourArea(outline) > 400
    ]
    return Scene(picture, objects, (0, 83, 155, 228, 303), 96, {"SIZES": [[90, 120, 155]], "ASPECT_RATIOS": [[1.0]]})


def make(folder: Path, scenes: dict[str, Scene], weights: Sequence[Path]) -> None:
    """Write tiles, annotations and grids."""
    for name, scene in scenes.items():
        tiles = folder / "tiles" / name
        tiles.mkdir(parents=True, exist_ok=True)
        parts = list(_bands(scene, tiles))
        sets = {"all": [entry for part in parts for entry in part]}
        for number, part in enumerate(parts):
            sets[f"test_{number}"] = part
            sets[f"train_{number}"] = [entry for other in parts if other is not part for entry in other]
        for key, entries in sets.items():
            _annotations(folder, name, key).write_text(json.dumps(_coco(name, entries)))
        for number in range(len(parts)):
            file = folder / "grids" / f"{name}_{number}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(_grid(folder, name, number, scene.anchors, weights), indent=1))
            print(file)
        objects = [len(masks) for entries in parts for _, _, masks in entries]
        print(f"{name}: {len(objects)} tiles in {len(parts)} bands, {sum(objects)} objects or parts of them")


def _bands(scene: Scene, folder: Path) -> Iterator[list[tuple[str, tuple[int, int], list[Mask]]]]:
    """Cut the scene; yield each band's tiles as file name, (height, width) and the masks in it."""
    for top, bottom in pairwise(scene.rows):
        cuts = np.linspace(top, bottom, -(-(bottom - top) // scene.tile) + 1).astype(int)
        band = []
        for (first, last), left in (
            (pair, x) for pair in pairwise(cuts) for x in range(0, scene.picture.shape[1], scene.tile)
        ):
            part = np.s_[first:last, left : left + scene.tile]
            file = folder / f"{first}_{left}.png"
            Image.fromarray(scene.picture[part]).save(file)
            masks = [mask[part] for mask in scene.objects if mask[part].sum() >= KEPT * mask.sum()]
            band.append((file.name, scene.picture[part].shape, masks))
        yield band


def _coco(name: str, entries: list[tuple[str, tuple[int, int], list[Mask]]]) -> dict[str, Any]:
    """Annotations whose image ids are the positions of the tiles in the picture, hence the same in every set."""
    images, annotations = [], []
    for file, (height, width), masks in entries:
        top, left = map(int, Path(file).stem.split("_"))
        identity = 10_000 * top + left
        images.append({"id": identity, "file_name": file, "height": height, "width": width})
        for mask in masks:
            encoded = coco_mask.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identity,
                    "category_id": 1,
                    "bbox": coco_mask.toBbox(encoded).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {**encoded, "counts": encoded["counts"].decode()},
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": name.rstrip("s")}]}


def _annotations(folder: Path, name: str, key: str) -> Path:
    return folder / "tiles" / f"{name}_{key}.json"


def _grid(folder: Path, name: str, number: int, anchors: dict[str, Any], weights: Sequence[Path]) -> dict[str, Any]:
    """A grid of study.py: the three heads, trained on the other bands and tested on this one."""
    report = json.loads((ROOT / "benchmarks/study_digits.json").read_text())
    settings = {row["name"]: row["settings"] for row in report["heads"]}
    entry = f"{folder / 'tiles' / name}:{{}}"
    return {
        "experiment": EXPERIMENT,
        "test": entry.format(_annotations(folder, name, f"test_{number}")),
        "first_seed": 1,
        "baseline": "sharing_4",
        "comparisons": [],
        "settings": {
            **report["settings"],
            **SCHEDULE,
            **{f"MODEL.ANCHOR_GENERATOR.{key}": value for key, value in anchors.items()},
            "MODEL.ROI_HEADS.NUM_CLASSES": 1,
            "DATASETS.TRAIN": entry.format(_annotations(folder, name, f"train_{number}")),
        },
        "measures": {"truth": {"arguments": ["--boxes", "truth"]}, "detections": {}},
        "heads": [
            {"name": head, "seeds": SEEDS, "settings": {**settings[head], "MODEL.WEIGHTS": str(file)}}
            for head, file in zip(HEADS, weights, strict=True)
        ],
    }


def report(folder: Path) -> Iterator[str]:
    """Pool the bands of each picture; yield the lines of the report."""
    for name in sorted({file.stem.rpartition("_")[0] for file in (folder / "grids").glob("*.json")}):
        grids = sorted((folder / "grids").glob(f"{name}_*.json"))
        truth = json.loads(_annotations(folder, name, "all").read_text())
        identities = sorted(image["id"] for image in truth["images"])
        objects = Counter(annotation["image_id"] for annotation in truth["annotations"])
        draws = image_draws(len(identities))
        draws[0] = 1  # the measure itself
        draws = draws[draws @ [objects[identity] for identity in identities] > 0]
        tables: dict[str, dict[str, dict[int, NDArray[np.float64]]]] = {"mask IoU": {}, "mask AP": {}}
        for head in HEADS:
            for seed in range(1, SEEDS + 1):
                entries = _pooled(folder, grids, f"{head}/seed_{seed}", "truth", "masks_on_truth.json")
                found = _pooled(folder, grids, f"{head}/seed_{seed}", "detections", "coco_instances_results.json")
                if entries is None or found is None:
                    yield f"{name} {head}/seed_{seed}: not complete, left out"
                    continue
                average = AveragePrecision(truth, found, "segm")
                assert average.image_ids == identities
                on_truth = mean_over_objects(entries, "iou", identities, draws)
                tables["mask IoU"].setdefault(head, {})[seed] = on_truth
                tables["mask AP"].setdefault(head, {})[seed] = average(draws)
        yield f"\n{name}: {len(identities)} tiles, {len(truth['annotations'])} objects\n"
        yield "| head, or difference | measure | seeds | value | bootstrap 95 % | t 95 % |"
        yield "|---|---|---|---|---|---|"
        for measure, rows in tables.items():
            for head, values in rows.items():
                mean = np.mean([each[0] for each in values.values()])
                yield f"| {head} | {measure} | {len(values)} | {mean:.1f} | | |"
            for first, second in (("sharing_4", "conv_4_gn"), ("implicit", "sharing_4")):
                both = (rows.get(first, {}), rows.get(second, {}))
                points = [{seed: float(each[0]) for seed, each in values.items()} for values in both]
                if (result := difference(*points, *both)) is not None:
                    spans = [f"{low:+.1f} to {high:+.1f}" for low, high in (result.bootstrap, result.student)]
                    yield (
                        f"| {first} - {second} | {measure} | {result.seeds} | {result.value:+.1f} | "
                        + " | ".join([*spans])
                        + " |"
                    )


def _pooled(folder: Path, grids: list[Path], title: str, measure: str, file: str) -> list[dict[str, Any]] | None:
    """The results of one head and seed in all bands; None if a band is missing."""
    results: list[dict[str, Any]] = []
    for path in grids:
        grid = Grid.read(path)
        (run,) = runs_of(grid, folder / "runs" / path.stem, [title])
        (wanted,) = (each for each in grid.measures if each.name == measure)
        if not run.measured(wanted).exists():
            return None
        results += json.loads((run.measured(wanted).parent / file).read_text())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--solaris", type=Path, help="the wheel of solaris 0.4.0")
    parser.add_argument("--skimage", type=Path, help="a wheel of scikit-image")
    parser.add_argument("--weights", type=Path, nargs=len(HEADS), metavar="FILE", help=f"of {', '.join(HEADS)}")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    if arguments.action == "report":
        for line in report(folder):
            print(line)
        return
    if not (arguments.solaris and arguments.skimage and arguments.weights):
        parser.error("make needs --solaris, --skimage and --weights")
    scenes = {"buildings": buildings(arguments.solaris), "coins": coins(arguments.skimage)}
    make(folder, scenes, [file.expanduser().resolve() for file in arguments.weights])


if __name__ == "__main__":
    main()

"""Pictures of detections beside the ground truth, for TensorBoard."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import nn

from ifr.data.coco import CocoDataset
from ifr.data.intensity import build_intensity
from ifr.data.samples import EvaluationSamples, annotate, read_picture
from ifr.data.transforms import build_test_transform
from ifr.visualize import contact_sheet, draw_detections

_LOWEST_SCORE = 0.5


@torch.inference_mode()
def draw_samples(model: nn.Module, config: Any, sets: Mapping[str, CocoDataset]) -> Iterator[tuple[str, Image.Image]]:
    """Yield TEST.PICTURES evenly spaced images of each data set, detections left and ground truth right, with names.

    Args:
        model: the detector; its mode is restored afterwards.
        config: the settings.
        sets: the data sets with annotations, by entry.
    """
    intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)
    transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES, config.INPUT.RESIZE)
    training = model.training
    model.eval()
    for dataset in sets.values():
        samples = EvaluationSamples(dataset, transform, intensity)
        count = min(int(config.TEST.PICTURES), len(dataset))
        for position in (number * len(dataset) // count for number in range(count)):
            record = dataset[position]
            pixels = read_picture(record, intensity)
            (found,) = model([samples[position]])
            shown = found["scores"] >= _LOWEST_SCORE
            truth = annotate(record, (), pixels.shape[:2], masks=bool(config.MODEL.MASK_ON), bitmasks=True)
            drawn = {"boxes": truth.boxes, "classes": truth.classes}
            if truth.masks is not None:
                drawn["masks"] = torch.as_tensor(truth.masks)
            pictures = [
                draw_detections(pixels, objects, dataset.class_names, dataset.category_ids)
                for objects in ({name: value[shown.to(value.device)].cpu() for name, value in found.items()}, drawn)
            ]
            yield f"{dataset.source.name}/{record.image_id}", contact_sheet(pictures, columns=2)
    model.train(training)

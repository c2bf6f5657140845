"""How the tests use each host: its inputs, its outputs and the choice of its samples."""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import torch
from official_outputs import ROOT
from torch import Tensor, nn

from ifr.data.annotations import Annotations
from ifr.experiment import Experiment, load_experiment
from ifr.hosts.standalone.detector.sampling import random_sample, set_sampler, split_labels
from ifr.hosts.standalone.detector.structures import Detections, Proposals


def sample_evenly(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """Sample like the reference: the first positives, and evenly spaced negatives."""
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return positive[:positives], negative[torch.arange(negatives) * len(negative) // max(negatives, 1)]


def experiment_in(host: str, name: str) -> Experiment:
    """Load an experiment in a host; detectron2, which has none, takes the standalone host's config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFR_HOST", "standalone" if host == "detectron2" else host)
        experiment = load_experiment(ROOT / name)
    experiment.config.merge_from_list(["MODEL.DEVICE", "cpu"])
    if host != "detectron2":
        return experiment
    build = importlib.import_module("detectron2_models").build
    return dataclasses.replace(experiment, build_model=lambda config: build(config, name.startswith("cascade")))


def small_model(host: str, explicit_iterations: int = 0) -> nn.Module:
    """Build the smallest experiment, of digits, in a host."""
    experiment = experiment_in(host, "mask_rcnn.ifr.res18.fpn.digits")
    settings = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    experiment.config.merge_from_list([*settings, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", explicit_iterations])
    return experiment.build_model(experiment.config)


class Regions(nn.Module):
    """Stands in for a pooler: returns these region features."""

    def __init__(self, regions: Tensor) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, *_: Any) -> Tensor:
        return self.regions


class Side(Protocol):
    """One host."""

    def found(self, output: Any) -> dict[str, Tensor]:
        """Return `boxes`, `scores`, `classes` and `masks` of one image."""

    def batch(self, io: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the reference's two annotated images."""

    def losses(self, model: nn.Module, io: dict[str, Any], iteration: int, want: dict[str, Any]) -> dict[str, Tensor]:
        """Return the losses of a training iteration on the reference's images, with its proposals in the heads.

        The model's own proposals could have ties, which rounding breaks, and lead to other samples.
        """

    def iterate(self, model: nn.Module, batch: list[dict[str, Any]], iteration: int) -> dict[str, Tensor]:
        """Return the losses of one training iteration as computed by the host's own training."""

    def rounding_alike(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Make the model round like the other hosts' within this context, if it can."""

    def masks(self, model: nn.Module, regions: Tensor, classes: Tensor) -> Tensor:
        """Return the mask probabilities (N, 2H, 2W) of region features (N, C, H, W), for these classes (N,)."""

    def sampling_evenly(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Make the model sample like the reference within this context."""


class Standalone:
    def rounding_alike(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return torch.no_grad()

    def found(self, output: Any) -> dict[str, Tensor]:
        return output

    def batch(self, io: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "image": image,
                "instances": Annotations(
                    io[f"gt_boxes.{i}"],
                    io[f"gt_classes.{i}"],
                    [[polygon.numpy() for polygon in polygons] for polygons in io[f"gt_polys.{i}"]],
                ),
            }
            for i, image in enumerate(io["preprocessed_256"])
        ]

    def losses(self, model: nn.Module, io: dict[str, Any], iteration: int, want: dict[str, Any]) -> dict[str, Tensor]:
        batch = self.batch(io)
        truth = [item["instances"] for item in batch]
        model.set_iteration(iteration)
        images = model.preprocess(batch)
        features = model.backbone(images.tensor)
        _, losses = model.proposal_generator(features, images.sizes, truth)
        official = [Proposals(want[f"rpn_boxes.{i}"], want[f"rpn_logits.{i}"]) for i in range(len(batch))]
        return losses | model.roi_heads.losses(features, images.sizes, official, truth)

    def iterate(self, model: nn.Module, batch: list[dict[str, Any]], iteration: int) -> dict[str, Tensor]:
        model.set_iteration(iteration)
        return model(batch)

    def masks(self, model: nn.Module, regions: Tensor, classes: Tensor) -> Tensor:
        model.roi_heads.mask_pooler = Regions(regions)
        boxes = torch.zeros(len(classes), 4)
        features = dict.fromkeys(model.roi_heads.in_features, regions)
        (found,) = model.roi_heads.masks(features, [Detections(boxes, boxes[:, 0], classes)])
        return found

    @contextlib.contextmanager
    def sampling_evenly(self, model: nn.Module) -> Iterator[None]:
        set_sampler(model, sample_evenly)
        yield
        set_sampler(model, random_sample)


class Cvpods:
    framework = "cvpods"
    events = "utils"  # the module of EventStorage
    samplers = ("proposal_generator.rpn_outputs", "roi_heads.roi_heads")  # modules that import the sampler

    def rounding_alike(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return torch.no_grad()

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.framework}.{name}")

    def found(self, output: Any) -> dict[str, Tensor]:
        instances = output["instances"]
        return {
            "boxes": instances.pred_boxes.tensor,
            "scores": instances.scores,
            "classes": instances.pred_classes,
            "masks": instances.pred_masks,
        }

    def batch(self, io: dict[str, Any]) -> list[dict[str, Any]]:
        structures = self._module("structures")
        batch = []
        for i, image in enumerate(io["preprocessed_256"]):
            truth = structures.Instances(tuple(image.shape[1:]))
            truth.gt_boxes = structures.Boxes(io[f"gt_boxes.{i}"].clone())
            truth.gt_classes = io[f"gt_classes.{i}"]
            polygons = [[polygon.numpy() for polygon in polygons] for polygons in io[f"gt_polys.{i}"]]
            truth.gt_masks = structures.PolygonMasks(polygons)
            batch.append({"image": image, "instances": truth})
        return batch

    def losses(self, model: nn.Module, io: dict[str, Any], iteration: int, want: dict[str, Any]) -> dict[str, Tensor]:
        structures = self._module("structures")
        batch = self.batch(io)
        truth = [item["instances"] for item in batch]
        with self._module(self.events).EventStorage(iteration):
            images = model.preprocess_image(batch)
            features = model.backbone(images.tensor)
            _, losses = model.proposal_generator(images, features, truth)
            official = []
            for i, size in enumerate(images.image_sizes):
                proposals = structures.Instances(tuple(size))
                proposals.proposal_boxes = structures.Boxes(want[f"rpn_boxes.{i}"].clone())
                proposals.objectness_logits = want[f"rpn_logits.{i}"].clone()
                official.append(proposals)
            _, more = model.roi_heads(images, features, official, truth)
        return losses | more

    def iterate(self, model: nn.Module, batch: list[dict[str, Any]], iteration: int) -> dict[str, Tensor]:
        with self._module(self.events).EventStorage(iteration):
            return model(batch)

    def masks(self, model: nn.Module, regions: Tensor, classes: Tensor) -> Tensor:
        instances = self._module("structures").Instances((1, 1))
        instances.pred_classes = classes
        inference = self._module("modeling.roi_heads.mask_head").mask_rcnn_inference
        inference(model.roi_heads.mask_head(regions), [instances])
        return instances.pred_masks[:, 0]

    @contextlib.contextmanager
    def sampling_evenly(self, model: nn.Module) -> Iterator[None]:
        modules = [self._module(f"modeling.{name}") for name in self.samplers]
        for module in modules:
            module.subsample_labels = sample_evenly
        yield
        own = self._module("modeling.sampling").subsample_labels
        for module in modules:
            module.subsample_labels = own


class Detectron2(Cvpods):
    """detectron2, of which cvpods is a derivative."""

    framework = "detectron2"
    events = "utils.events"
    samplers = ("proposal_generator.rpn", "roi_heads.roi_heads")

    @contextlib.contextmanager
    def rounding_alike(self, model: nn.Module) -> Iterator[None]:
        """Its FrozenBatchNorm2d is x * scale + shift, as in the other hosts, only where gradients are needed."""
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_()
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def found(self, output: Any) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().found(output).items()}

    def masks(self, model: nn.Module, regions: Tensor, classes: Tensor) -> Tensor:
        instances = self._module("structures").Instances((1, 1))
        instances.pred_classes = classes
        (found,) = model.roi_heads.mask_head(regions, [instances])
        return found.pred_masks[:, 0]


SIDES: dict[str, Side] = {"cvpods": Cvpods(), "detectron2": Detectron2(), "standalone": Standalone()}

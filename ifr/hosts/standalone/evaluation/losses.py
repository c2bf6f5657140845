"""The losses of training on images that the model is not trained on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ifr.data.coco import CocoDataset
from ifr.data.loader import validation_loader
from ifr.hosts.standalone.detector.sampling import SeededSampler, set_sampler
from ifr.hosts.standalone.evaluation.coco_evaluation import Batch, Metrics, Task


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Compute losses as in training, but with fixed statistics and without dropout, and restore model and samplers."""
    training = model.training
    samplers = [(part, part.sampler) for part in model.modules() if hasattr(part, "sampler")]
    model.train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            part.eval()
    model.get_submodule("backbone").eval()
    try:
        yield
    finally:
        model.train(training)
        for part, sampler in samplers:
            part.sampler = sampler


def _losses(model: nn.Module, dataset: CocoDataset, batch: Batch) -> list[dict[str, Any]]:
    """Return the losses of every image; its id alone decides which anchors and proposals are sampled."""
    results = []
    for item in batch:
        sampler = SeededSampler()
        sampler.begin([int(item["image_id"])])
        set_sampler(model, sampler)
        losses = {name: float(loss) for name, loss in model([item]).items()}
        results.append({"image_id": item["image_id"], "total_loss": sum(losses.values()), **losses})
    return results


def _mean(dataset: CocoDataset, results: Sequence[dict[str, Any]], config: Any) -> Metrics:
    ordered = sorted(results, key=lambda result: int(result["image_id"]))  # the sum must not depend on the workers
    names = [name for name in ordered[0] if name != "image_id"]
    return {"loss": {name: sum(result[name] for result in ordered) / len(ordered) for name in names}}


LOSSES = Task("losses.json", "mean_losses.json", _losses, _mean, validation_loader, _measuring)
"""Its metrics are means over the images of a set from `ifr.data.loader.open_validation_sets`."""

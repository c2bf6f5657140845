"""How often the host waits for a real GPU, as torch reports it; see tests/standalone/test_synchronisations.py."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_synchronisations import EVALUATION, TRAINING, Batch, build

from ifr.hosts.standalone.evaluation.coco_format import coco_results


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Collect the places where the host waits; torch does not report the waits for an event."""
    places: list[str] = []
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_a_training_step_rarely_waits(tiny: Path, polygon_batch: Batch, phase: str) -> None:
    trainer = build(tiny, torch.device("cuda", 0))
    for iteration in range(3):  # the first ones allocate
        trainer.step(0 if phase == "explicit" else iteration, polygon_batch)
    trainer.settle()
    with counted_waits() as places:
        trainer.step(0 if phase == "explicit" else 3, polygon_batch)
    assert 0 < len(places) <= TRAINING, places


def test_an_evaluation_rarely_waits(tiny: Path, polygon_batch: Batch) -> None:
    model = build(tiny, torch.device("cuda", 0)).model.eval()
    with torch.inference_mode():
        model(polygon_batch[:1])
        with counted_waits() as places:
            (found,) = model(polygon_batch[:1])
            assert coco_results(found, image_id=1, category_ids=(1, 2))
    assert 0 < len(places) <= EVALUATION, places

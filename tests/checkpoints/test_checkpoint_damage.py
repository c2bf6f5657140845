"""Damage to a checkpoint is detected unless it is in bytes without meaning."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ifr.checkpoints import read_checkpoint
from ifr.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(7, 5, generator=generator) for i in range(4)}
    torch.save({"model": weights, "iteration": 3, "random": torch.get_rng_state()}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def same(path: Path, original: Path) -> bool:
    one, other = read_checkpoint(path), read_checkpoint(original)
    return (
        list(one.weights) == list(other.weights)
        and all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)
        and list(one.extras) == list(other.extras)
        and one.extras["iteration"] == other.extras["iteration"]
        and torch.equal(one.extras["random"], other.extras["random"])
    )


def damaged_copies(checkpoint: Path) -> Iterator[bytes]:
    """Yield copies with one bit flipped or the end cut off, at random places."""
    content, chance = checkpoint.read_bytes(), random.Random(0)
    for _ in range(600):
        place = chance.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    for _ in range(100):
        yield content[: chance.randrange(1, len(content))]


def test_one_flipped_bit_or_a_cut_is_noticed_or_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    noticed = 0
    for content in damaged_copies(checkpoint):
        copy = tmp_path / "copy.pth"
        copy.write_bytes(content)
        try:
            assert same(copy, checkpoint)
        except CheckpointError:
            noticed += 1
    assert noticed > 350  # the rest is padding between the records


def test_torch_itself_reads_a_flipped_bit_as_if_nothing_were_wrong(checkpoint: Path) -> None:
    """torch does not verify CRCs, so IFR does."""
    before = torch.load(checkpoint, weights_only=True)["model"]["layer2.weight"]
    content = checkpoint.read_bytes()
    place = content.index(before.numpy().tobytes())
    checkpoint.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert not torch.equal(torch.load(checkpoint, weights_only=True)["model"]["layer2.weight"], before)
    with pytest.raises(CheckpointError, match=r"damaged.*CRC"):
        read_checkpoint(checkpoint)

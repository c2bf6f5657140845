"""torchvision's ResNet in every host: refused with other settings, otherwise its own features."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from official_outputs import EXPERIMENTS
from sides import experiment_in
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from ifr.checkpoints import CheckpointFile, load_weights
from ifr.errors import CheckpointError

PAIRS = {"MODEL.PIXEL_STD": "[57.375, 57.12, 58.395]", "MODEL.RESNETS.STRIDE_IN_1X1": "False"}


def build(settings: dict[str, Any], host: str) -> nn.Module:
    experiment = experiment_in(host, EXPERIMENTS[0])
    experiment.config.merge_from_list([part for pair in settings.items() for part in pair])
    return experiment.build_model(experiment.config).eval()


def test_torchvision_resnet50(host: str) -> None:
    net = torchvision.models.resnet50().eval()
    file = CheckpointFile(Path("resnet50.pth"), net.state_dict())
    with pytest.raises(CheckpointError, match="other settings") as caught:
        load_weights(build({}, host), file)
    assert caught.value.remedy.startswith(
        'add MODEL.PIXEL_STD "[57.375, 57.12, 58.395]" MODEL.RESNETS.STRIDE_IN_1X1 False, or'
    )
    model = build(PAIRS, host)
    load_weights(model, file)
    rgb = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    preprocess: Any = model.preprocess if host == "standalone" else model.preprocess_image
    stages = IntermediateLayerGetter(net, {f"layer{i}": f"res{i + 1}" for i in range(1, 5)})
    with torch.inference_mode():
        expected = stages(normalize(rgb.float() / 255)[None])
        found = model.backbone.bottom_up(preprocess([{"image": rgb.flip(0)}]).tensor)
    for name, want in expected.items():
        assert (found[name] - want).norm() <= 1e-4 * want.norm(), name

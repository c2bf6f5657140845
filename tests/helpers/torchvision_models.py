"""Small detectors of torchvision with a backbone of their own, and pictures to train them on."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

SIZE = 64
LEVELS = ("0", "1", "2")  # strides 4, 8 and 16
RATIOS = (0.5, 1.0, 2.0)


class Pyramid(nn.Module):
    """Features of three levels from strided convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 7, stride=4, padding=3), nn.ReLU())
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in LEVELS[1:])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = [self.stem(images)]
        for down in self.down:
            levels.append(torch.relu(down(levels[-1])))
        return dict(zip(LEVELS, levels, strict=True))


def mask_rcnn(channels: int = 32, classes: int = 2) -> MaskRCNN:
    """Mask R-CNN for images of 64 x 64 pixels, with labels 1 to `classes`."""
    sizes = ((16,), (32,), (64,))
    return MaskRCNN(
        Pyramid(channels),
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * 3),
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, 2),
        box_head=TwoMLPHead(channels * 49, 32),
        box_predictor=FastRCNNPredictor(32, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, 2),
        mask_head=MaskRCNNHeads(channels, (24, 24), 1),
        mask_predictor=MaskRCNNPredictor(24, 24, classes + 1),
        box_score_thresh=0.0,
        box_detections_per_img=10,
    )


def retinanet(channels: int = 32) -> RetinaNet:
    """RetinaNet for images of 64 x 64 pixels, with labels 1 and 2; label 0 is never used."""
    anchors = AnchorGenerator(((16,), (32,), (64,)), (RATIOS,) * 3)
    return RetinaNet(Pyramid(channels), num_classes=3, min_size=SIZE, max_size=SIZE, anchor_generator=anchors)


def fcos(channels: int = 32) -> FCOS:
    """FCOS for images of 64 x 64 pixels, with labels 1 and 2; label 0 is never used."""
    anchors = AnchorGenerator(((4,), (8,), (16,)), ((1.0,),) * 3)
    return FCOS(Pyramid(channels), num_classes=3, min_size=SIZE, max_size=SIZE, anchor_generator=anchors)


def pictures(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, 64, 64) in [0, 1] with a red disc (label 1) and a green bar (label 2) each, and their targets."""
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images, targets = [], []
    for _ in range(count):
        x, y = torch.randint(12, 20, (2,), generator=random).tolist()
        left, top = torch.randint(32, 38, (2,), generator=random).tolist()
        disc = (columns - x) ** 2 + (rows - y) ** 2 <= 100
        bar = (columns >= left) & (columns < left + 24) & (rows >= top) & (rows < top + 12)
        image = torch.rand(3, SIZE, SIZE, generator=random) * 0.2
        image[0][disc] = 0.9
        image[1][bar] = 0.9
        images.append(image)
        boxes = torch.tensor([[x - 10, y - 10, x + 11, y + 11], [left, top, left + 24, top + 12]], dtype=torch.float32)
        masks = torch.stack([disc, bar]).to(torch.uint8)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks})
    return images, targets

"""Train only IFR's mask head on a trained Mask R-CNN of torchvision; backbone, RPN and box head stay as they are.

python examples/torchvision_finetune.py photos/ annotations.json --weights detector.pth --output head.pth

The category ids of the annotations must be the detector's labels, as with torchvision's own COCO weights, the default.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models import get_model
from torchvision.transforms import v2

from ifr.contraction import Contraction
from ifr.hosts.torchvision import follow_training, replace_mask_head, save_mask_head
from ifr.refine import Implicit
from ifr.solvers import GMRES, Anderson

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", help="folder of images")
parser.add_argument("annotations", help="annotations in COCO format")
parser.add_argument("--model", default="maskrcnn_resnet50_fpn_v2", help="a Mask R-CNN in torchvision.models")
parser.add_argument("--weights", help="the detector's state dict; default: torchvision's COCO weights, downloaded")
parser.add_argument("--output", default="head.pth", help="file for the trained mask head")
parser.add_argument("--iterations", type=int, default=5000, help="the first third trains by weight sharing")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=0.01)
parser.add_argument("--size", type=int, default=800, help="shorter side of the images in the network, in pixels")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
arguments = parser.parse_args()

data = CocoDetection(arguments.images, arguments.annotations)
data.ids = [image for image in data.ids if data.coco.getAnnIds(image, iscrowd=False)]
data.transforms = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
data = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "masks", "iscrowd"))
if len(data) < arguments.batch_size:
    parser.error(f"{len(data)} images have objects, fewer than --batch-size {arguments.batch_size}")
loader = DataLoader(data, arguments.batch_size, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)

if arguments.weights:
    state = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    classes = len(state["roi_heads.mask_predictor.mask_fcn_logits.weight"])  # with the background
    model = get_model(arguments.model, weights=None, weights_backbone=None, num_classes=classes)
    model.load_state_dict(state)
else:
    model = get_model(arguments.model, weights="DEFAULT")
model.transform.min_size = (arguments.size,)
refinement = Implicit(Anderson(7), adjoint=GMRES(5), penalty=Contraction(3.0))  # settings with which solves converge
head = replace_mask_head(model, refinement, gain=0.75)

model.to(arguments.device).requires_grad_(False).train()
head.requires_grad_(True)
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()  # otherwise its statistics would change

optimizer = torch.optim.SGD(head.parameters(), arguments.learning_rate, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, arguments.iterations)
follow_training(head, explicit_iterations=arguments.iterations // 3, iteration=lambda: schedule.last_epoch)

while schedule.last_epoch < arguments.iterations:
    for batch in loader:
        images = [image.to(arguments.device) for image, _ in batch]
        targets = []
        for _, target in batch:
            objects = torch.tensor(target.pop("iscrowd")) == 0
            targets.append({name: value[objects].to(arguments.device) for name, value in target.items()})
        losses = model(images, targets)
        losses = {name: losses[name] for name in ("loss_mask", "loss_equilibrium") if name in losses}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if schedule.last_epoch % 20 == 0:
            values = ", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"iteration {schedule.last_epoch}: {head.refinement.phase}, {values}", flush=True)
        schedule.step()
        if schedule.last_epoch == arguments.iterations:
            break
save_mask_head(arguments.output, model, iteration=schedule.last_epoch)
print(f"{arguments.output}: the mask head, which ifr.hosts.torchvision.load_mask_head reads")

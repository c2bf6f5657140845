"""IFR in the detectors of torchvision: the mask head of Mask R-CNN, and the towers of RetinaNet and FCOS."""

from ifr.hosts.heads import follow_training, load_mask_head, save_mask_head
from ifr.hosts.torchvision.mask_rcnn import replace_mask_head
from ifr.hosts.torchvision.towers import replace_towers

__all__ = ["follow_training", "load_mask_head", "replace_mask_head", "replace_towers", "save_mask_head"]

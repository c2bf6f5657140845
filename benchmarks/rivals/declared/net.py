"""The model of this experiment: Mask R-CNN; config.py selects its mask head."""

from ifr.hosts import build_mask_rcnn as build_model

__all__ = ["build_model"]

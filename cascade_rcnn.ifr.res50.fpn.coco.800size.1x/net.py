"""The model of this experiment: Cascade R-CNN; config.py selects its mask head."""

from ifr.hosts import build_cascade_rcnn as build_model

__all__ = ["build_model"]

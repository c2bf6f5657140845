"""The model of this experiment: Cascade R-CNN; config.py says how its mask head refines."""

from ifr.hosts import build_cascade_rcnn as build_model

__all__ = ["build_model"]

"""The settings of the digits experiment."""

from ifr.experiment import load_experiment

config = load_experiment("mask_rcnn.ifr.res18.fpn.digits").config

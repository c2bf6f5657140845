"""Mask R-CNN and Cascade R-CNN built on torchvision's operators, numerically equal to cvpods."""

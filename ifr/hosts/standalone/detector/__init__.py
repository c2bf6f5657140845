"""Mask R-CNN and Cascade R-CNN on torchvision's operations, computing what cvpods computes."""

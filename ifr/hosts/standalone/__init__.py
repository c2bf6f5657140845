"""The embedded detection framework: everything IFR needs to train, test and predict without another one."""

from ifr.errors import ConfigError
from ifr.hosts.standalone.builders import build_cascade_rcnn, build_mask_rcnn
from ifr.hosts.standalone.config import RCNNFPNConfig

__all__ = ["ConfigError", "RCNNFPNConfig", "build_cascade_rcnn", "build_mask_rcnn"]

"""The embedded detection framework: IFR trains, tests and predicts with it if no other framework is installed."""

from ifr.errors import ConfigError
from ifr.hosts.standalone.builders import build_cascade_rcnn, build_mask_rcnn
from ifr.hosts.standalone.config import RCNNFPNConfig

__all__ = ["ConfigError", "RCNNFPNConfig", "build_cascade_rcnn", "build_mask_rcnn"]

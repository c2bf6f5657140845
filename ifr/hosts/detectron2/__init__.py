"""IFR in detectron2: the mask head "IFRMaskHead" of its registry, the settings for it, and its weights.

Importing this module imports detectron2 and registers the head.

Raises:
    ImportError: detectron2 is missing, broken, or lacks something that IFR uses.
"""

from ifr.hosts.detectron2.mask_head import IFRMaskHead, add_ifr_config
from ifr.hosts.detectron2.weights import load_detector

__all__ = ["IFRMaskHead", "add_ifr_config", "load_detector"]

"""IFR in mmdetection: `custom_imports = dict(imports=["ifr.hosts.mmdet"])` makes its mask heads known to configs."""

from ifr.hosts.mmdet.importing import import_mmdet

import_mmdet()  # before the modules that need it

from ifr.hosts.heads import load_mask_head, save_mask_head  # noqa: E402
from ifr.hosts.mmdet.config import use_ifr  # noqa: E402
from ifr.hosts.mmdet.hook import IFRHook  # noqa: E402
from ifr.hosts.mmdet.mask_head import IFRHTCMaskHead, IFRMaskHead  # noqa: E402

__all__ = ["IFRHTCMaskHead", "IFRHook", "IFRMaskHead", "load_mask_head", "save_mask_head", "use_ifr"]

"""Everything that IFR uses from detectron2; importing this module imports detectron2, built or not.

detectron2 itself does without its compiled extension: only deformable convolutions, rotated boxes and the fast COCO
evaluation need it.

Raises:
    ImportError: detectron2 is missing, broken, or lacks one of these names.
"""

import warnings

_TRIED = "version 0.6 at commit 02b5c4e2"
_NEEDS = "fvcore iopath yacs omegaconf hydra-core cloudpickle matplotlib tabulate tensorboard termcolor"

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script and others: users cannot fix them
        from detectron2.config import configurable
        from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
        from detectron2.utils.events import get_event_storage
except ImportError as error:
    name = error.name or ""
    absent = isinstance(error, ModuleNotFoundError)
    if absent and name in ("detectron2", "detectron2.config"):  # the second if a clone lies in the working directory
        raise ModuleNotFoundError(
            "detectron2 cannot be found. Clone github.com/facebookresearch/detectron2, put the clone on PYTHONPATH or "
            f"install it (pip install --no-build-isolation -e detectron2), and pip install {_NEEDS}",
            name=name,
        ) from error
    if f"{name}.".startswith("detectron2."):
        raise ImportError(f"{error}; IFR was tried with detectron2 {_TRIED}", name=name) from error
    if absent:
        raise ModuleNotFoundError(f"detectron2 needs pip install {_NEEDS}: {error}", name=name) from error
    raise

__all__ = ["ROI_MASK_HEAD_REGISTRY", "BaseMaskRCNNHead", "configurable", "get_event_storage"]

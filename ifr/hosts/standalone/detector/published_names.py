"""The names that cvpods gives to the tensors of a detector, which every checkpoint on disk has."""

import re

_FPN_PARTS = {"inner_blocks": "lateral", "layer_blocks": "output"}
_FIRST_LEVEL = 2  # of the pyramid, p2


def published_name(key: str, *, cascade: bool) -> str:
    """The key in a cvpods checkpoint of the tensor `key` of an `RCNN`; a cascade numbers its box stages."""
    key = re.sub(r"\bfpn\.(inner|layer)_blocks\.(\d+)\.([01])\.", _fpn_name, key)
    if key.startswith("backbone.bottom_up."):
        key = key.replace(".stem.bn1.", ".stem.conv1.norm.")
        key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
        key = key.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    key = re.sub(r"\.stages\.(\d+)\.(box_head|box_predictor)\.", r".\2.\1." if cascade else r".\2.", key)
    key = re.sub(r"\.(conv|mask_fcn)(\d+)\.0\.", r".\1\2.", key)
    return re.sub(r"\.(conv|mask_fcn)(\d+)\.1\.", r".\1\2.norm.", key)


def _fpn_name(match: re.Match[str]) -> str:
    kind = _FPN_PARTS[f"{match[1]}_blocks"]
    return f"fpn_{kind}{_FIRST_LEVEL + int(match[2])}." + ("norm." if match[3] == "1" else "")

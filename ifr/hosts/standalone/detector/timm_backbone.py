"""The convolutional part of a model of timm, as the bottom of a feature pyramid."""

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ifr.errors import RunError

PREFIX = "timm:"
_SAFE = (1, 0, 26)  # the first version that reads weights with torch.load(weights_only=True)
_STAGES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}  # the names of ResNet's stages, by stride
_PROBE = (64, 96)  # height and width in pixels, different, and unlike those that a model of one size would take
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, AttributeError, NotImplementedError)


class TimmStages(nn.Module):
    """The stages of strides 4, 8, 16 and 32 of a model of timm (R. Wightman, PyTorch Image Models).

    Args:
        name: the model's name in timm, such as `resnet50.a1_in1k`.
        freeze_at: number of frozen parts: 1 for what comes before stride 4, 2 with the stage of stride 4, and so on.
        freeze_norm: fix scale, shift and statistics of every batch normalisation.

    Raises:
        RunError: timm is not installed.
        ValueError: timm has no such model, or it does not have these strides.
    """

    def __init__(self, name: str, *, freeze_at: int = 2, freeze_norm: bool = True) -> None:
        super().__init__()
        self.name = name
        self.net = _create(name)
        config: Mapping[str, Any] = self.net.pretrained_cfg
        self.pixel_mean, self.pixel_std = (
            [round(255 * float(value), 3) for value in reversed(config[key])] for key in ("mean", "std")
        )
        """Of every channel, BGR 0-255."""
        self._places, self._channels_last, self.channels = self._probe()
        self._freeze(freeze_at, freeze_norm=freeze_norm)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the features of every stage for images (N, 3, H, W), BGR."""
        outputs = self.net(images.flip(1))
        if self._channels_last:
            outputs = [output.permute(0, 3, 1, 2) for output in outputs]
        return OrderedDict((stage, outputs[place]) for stage, place in self._places.items())

    @torch.no_grad()
    def _probe(self) -> tuple[dict[str, int], bool, dict[str, int]]:
        """Return where the stages are in the output, whether their channels are last, and the number of channels."""
        channels = list(self.net.feature_info.channels())
        self.net.eval()
        try:
            shapes = [tuple(output.shape) for output in self.net(torch.zeros(1, 3, *_PROBE))]
        except _REFUSALS as error:
            raise ValueError(
                f"{PREFIX}{self.name} cannot be a backbone: it does not take pictures of {_PROBE[0]} x {_PROBE[1]} "
                f"pixels ({error})"
            ) from error
        finally:
            self.net.train()
        last = all(shape[3] == count != shape[1] for shape, count in zip(shapes, channels, strict=True))
        places = {}
        for place, shape in enumerate(shapes):
            size = shape[1:3] if last else shape[2:4]
            stride = _PROBE[0] // size[0]
            if stride in _STAGES and size == (_PROBE[0] // stride, _PROBE[1] // stride):
                places[_STAGES[stride]] = place  # the last of a stride
        if list(places) != list(_STAGES.values()):
            raise ValueError(
                f"{PREFIX}{self.name} cannot be a backbone: a pyramid needs strides {', '.join(map(str, _STAGES))}, "
                f"its features have {', '.join(map(str, self.net.feature_info.reduction()))}"
            )
        return places, last, {stage: channels[place] for stage, place in places.items()}

    def _freeze(self, parts: int, *, freeze_norm: bool) -> None:
        from timm.layers import freeze_batch_norm_2d

        modules = list(self.net.named_modules())
        frozen = {name for name, _ in modules[: self._end_of(parts, [name for name, _ in modules])]}
        for name, module in modules:
            if name in frozen:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and (freeze_norm or name in frozen):
                parent, _, child = name.rpartition(".")
                setattr(self.net.get_submodule(parent), child, freeze_batch_norm_2d(module))

    def _end_of(self, parts: int, modules: list[str]) -> int:
        """Return how many modules, in their order, belong to the first `parts` parts."""
        if parts < 1:
            return 0
        stages = list(self._places.values())[: max(parts - 1, 1)]
        name = self.net.feature_info.module_name()[stages[-1]]
        own = [
            number
            for number, module in enumerate(modules)
            for written in (name, name.replace(".", "_"))  # timm renames what it flattens
            if module == written or module.startswith(f"{written}.")
        ]
        if not own:
            raise ValueError(f"{PREFIX}{self.name} has no module {name!r} to freeze; set MODEL.BACKBONE.FREEZE_AT 0")
        return own[0] if parts == 1 else own[-1] + 1

    def translated(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return weights with timm's names under the keys of `net`; None if most of them are no weights of this model.

        Counters of batch normalisation are left out where it is frozen.
        """
        own = {key.replace(".", "_"): key for key in self.net.state_dict()}
        found = {own[flat]: value for key, value in weights.items() if (flat := key.replace(".", "_")) in own}
        return found if 2 * len(found) > len(own) else None

    def load_pretrained(self) -> None:
        """Load timm's own weights from its cache, which fetches them if it can.

        Raises:
            RunError: timm has no weights for this model, cannot fetch them, or is too old.
        """
        import timm

        if tuple(map(int, re.findall(r"\d+", timm.__version__)[:3])) < _SAFE:
            raise RunError(
                f"timm {timm.__version__} would let a file of weights run code", "pip install --upgrade 'ifr[timm]'"
            )
        try:
            trained = timm.create_model(self.name, pretrained=True, features_only=True)
        except Exception as error:  # of the network, of the hub's client, of timm
            raise RunError(
                f"timm cannot load its weights of {self.name} ({type(error).__name__}: {error})",
                "give a file of them as MODEL.WEIGHTS, or fill timm's cache on a machine with internet access",
            ) from error
        values = self.translated(trained.state_dict())
        self.net.load_state_dict(values or {}, strict=False)


def _create(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise RunError(
            f"MODEL.BACKBONE.NAME {PREFIX}{name} needs timm, which is not installed", "pip install 'ifr[timm]'"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        return timm.create_model(name, pretrained=False, features_only=True)
    except _REFUSALS as error:
        raise ValueError(f"{PREFIX}{name} cannot be a backbone: timm gives no features of it ({error})") from error

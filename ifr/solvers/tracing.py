"""Refuses to be traced by `torch.jit`, which would record the steps and sizes of one input without a word."""

from __future__ import annotations

import torch


def refuse_tracing(what: str) -> None:
    """Raise an error under `torch.jit.trace` and `torch.onnx.export(dynamo=False)`.

    Args:
        what: what is traced, as the subject of a sentence.

    Raises:
        RuntimeError: it is being traced.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            f"{what} cannot be traced by torch.jit.trace or torch.onnx.export(dynamo=False), because the result would "
            "be right only for the traced input; use torch.export.export or torch.onnx.export(dynamo=True)"
        )

"""The deterministic algorithms of a run that asks for them."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.backends import cudnn

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def deterministic(config: Any) -> Iterator[None]:
    """With TRAINER.DETERMINISTIC, let torch and cuDNN use only deterministic algorithms in this context.

    cuBLAS reads its environment variable when a process first uses it, so this must come before.
    """
    if not config.TRAINER.DETERMINISTIC:
        yield
        return
    if config.CUDNN_BENCHMARK:
        logger.info("CUDNN_BENCHMARK True -> False, because of TRAINER.DETERMINISTIC True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]

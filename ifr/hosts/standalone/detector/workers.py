"""Losses whose mean runs over the samples of all workers, so that it does not matter how a batch is split."""

import torch
from torch import distributed


def share_of_samples(count: int, device: torch.device) -> torch.Tensor | float:
    """This worker's number of samples over the workers' mean number; 1.0 without other workers.

    Data parallelism averages the workers' gradients. The mean over one worker's samples, times this share, thus
    averages to the mean over the samples of all of them. All workers must call it together.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return 1.0
    total = torch.tensor(float(count), device=device)
    distributed.all_reduce(total)
    return count * distributed.get_world_size() / total.clamp(min=1)

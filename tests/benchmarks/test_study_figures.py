"""The effective receptive field of heads whose field is known."""

import numpy as np
import torch
from study_figures import effective_field
from torch import nn

from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import GMRES, Anderson


def test_the_field_of_convolutions_is_their_receptive_field() -> None:
    head = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)], nn.ConvTranspose2d(4, 3, 2, 2))
    field = effective_field(head, torch.randn(5, 4, 14, 14), torch.tensor([0, 1, 2, 0, 1]))
    assert abs(field.sum() - 1) < 1e-6
    # The four central logits see two cells each way, and two 3 x 3 convolutions two more.
    rows, columns = np.nonzero(field)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 9, 4, 9)


def test_more_applications_see_more_and_the_equilibrium_sees_most() -> None:
    x, classes = torch.randn(6, 8, 14, 14), torch.zeros(6, dtype=torch.int64)
    fields = []
    for refinement in (Explicit(1), Explicit(4), Implicit(Anderson(60, 1e-6), GMRES(60, 1e-6))):
        torch.manual_seed(1)
        head = MaskHead(8, 1, refinement).eval()
        fields.append(effective_field(head, x, classes))
    rows, columns = np.mgrid[:14, :14] - 6.5
    radii = [float((field * (rows**2 + columns**2)).sum()) for field in fields]
    assert radii[0] < radii[1] < radii[2]

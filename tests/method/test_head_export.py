"""The mask head as a graph: exported, compiled, and refused by tracing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import GMRES, Anderson, Broyden, Picard

REFINEMENTS = {
    "explicit": Explicit(2),
    "broyden": Implicit(Broyden(4, memory=2), GMRES(4)),
    "anderson": Implicit(Anderson(4), GMRES(4)),
    "picard": Implicit(Picard(4, tol=0.1), GMRES(4)),
    "one evaluation": Implicit(Broyden(4), GMRES(4), budget=1),
}
ANY_COUNT = {"x": {0: Dim("regions")}}


def head_and_regions(name: str) -> tuple[MaskHead, Tensor]:
    """Regions that converge at different steps: one of zeros, others scaled."""
    x = torch.randn(4, 8, 6, 6) * torch.tensor((1.0, 0.0, 30.0, 5.0)).view(4, 1, 1, 1)
    head = MaskHead(8, 3, REFINEMENTS[name]).eval()
    torch.nn.init.normal_(head.predictor.weight)
    return head, x


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("name", REFINEMENTS)
@torch.no_grad()
def test_an_exported_head_is_the_head_for_any_number_of_regions(name: str, strict: bool) -> None:
    head, x = head_and_regions(name)
    exported = torch.export.export(head, (x,), dynamic_shapes=ANY_COUNT, strict=strict).module()
    for regions in (x, x[:1], torch.cat((x, 2 * x)), x[:0]):
        torch.testing.assert_close(exported(regions), head(regions), rtol=0, atol=1e-5)  # batches round differently


@torch.no_grad()
def test_an_exported_solve_keeps_a_region_that_is_not_finite_to_itself() -> None:
    head, x = head_and_regions("broyden")
    exported = torch.export.export(head, (x,), dynamic_shapes=ANY_COUNT).module()
    spoiled = x.clone()
    spoiled[2, 0, 0, 0] = torch.nan
    others = [0, 1, 3]
    torch.testing.assert_close(exported(spoiled)[others], head(x)[others], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["broyden", "anderson"])
@torch.no_grad()
def test_onnx(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="pip install 'ifr[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'ifr[export]'")
    head, x = head_and_regions(name)
    program = torch.export.export(head, (x,), dynamic_shapes=ANY_COUNT)
    torch.onnx.export(program, (), tmp_path / "head.onnx", dynamo=True, input_names=["x"], verbose=False)
    session = runtime.InferenceSession(tmp_path / "head.onnx")
    for regions in (x, x[:1], torch.cat((x, 2 * x))):
        (logits,) = session.run(None, {"x": regions.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), head(regions), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["explicit", "broyden"])
def test_a_compiled_head_is_the_head(name: str) -> None:
    """Captured as one graph; `benchmarks/export.py` compares the code that is generated from it."""
    head, x = head_and_regions(name)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(head, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), head(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's compiler, which hides it itself
def test_a_compiled_head_trains_like_the_head() -> None:
    head, x = MaskHead(8, 3, Implicit(Broyden(2), GMRES(2))), torch.randn(2, 8, 6, 6)
    torch.nn.init.normal_(head.predictor.weight)
    torch.compiler.reset()
    gradients = []
    for call in (head, torch.compile(head, backend="eager")):
        head.zero_grad()
        call(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(head.parameters()))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["explicit", "one evaluation"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_traced_head_is_the_head_for_any_number_of_regions(name: str, gradients: bool) -> None:
    head, x = head_and_regions(name)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(head, torch.randn(60, *x.shape[1:]))
        for count in (1, 4, 60, 130):
            regions = torch.randn(count, *x.shape[1:])
            torch.testing.assert_close(traced(regions), head(regions), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_tracing_is_refused() -> None:
    head, x = head_and_regions("broyden")
    with pytest.raises(RuntimeError, match=r"an implicit refinement cannot be traced .* use torch\.export\.export"):
        torch.jit.trace(head, x)


def test_the_published_solver_is_not_exported() -> None:
    head = MaskHead(8, 3, Implicit.published(4)).eval()
    with pytest.raises(RuntimeError, match="PublishedBroyden cannot be exported"):
        torch.export.export(head, (torch.randn(2, 8, 6, 6),))

"""Compare the seconds of the mask head and of the detector in eager mode with those of their graphs.

The head is compiled by torch.compile and by AOTInductor, and exported to ONNX. The detector is compiled by
torch.compile.
Random weights; all run alternately; medians and their ratios to eager mode are printed, and the largest differences.

    python benchmarks/export.py [--repeats 5] [--regions 32] [--channels 256] [--steps 15] [--parts head,detector]
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from detector import own_model
from measure import timed
from torch import Tensor

from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import GMRES, Broyden

CPU = torch.device("cpu")


def compare(name: str, forms: Mapping[str, Callable[[], Tensor]], repeats: int) -> None:
    """Print the times of several forms of one model; the first is the reference, and each returns the same values."""
    results, seconds = {}, {form: [] for form in forms}
    for form, run in forms.items():
        start = time.perf_counter()
        results[form] = run()
        print(f"{name} {form}: first run {time.perf_counter() - start:.1f} s")
    for _ in range(repeats):
        for form, run in forms.items():
            seconds[form].append(timed(run, CPU))
    reference = next(iter(forms))
    for form in forms:
        median = statistics.median(seconds[form])
        ratio = median / statistics.median(seconds[reference])
        difference = float((results[form] - results[reference]).abs().max())
        print(f"  {form:12s} {median:8.4f} s  ratio {ratio:.2f}  largest difference {difference:.2g}")


def compare_heads(regions: int, channels: int, steps: int, repeats: int) -> None:
    x = torch.randn(regions, channels, 14, 14)
    for name, refinement in {"explicit": Explicit(), "implicit": Implicit(Broyden(steps), GMRES(steps))}.items():
        head = MaskHead(channels, 80, refinement).eval()
        torch.nn.init.normal_(head.predictor.weight, std=0.1)
        program = torch.export.export(head, (x,), dynamic_shapes={"x": {0: torch.export.Dim("regions")}})
        compiled = torch.compile(head)
        with tempfile.TemporaryDirectory() as folder:
            package = str(Path(folder) / "head.pt2")
            library = torch._inductor.aoti_load_package(
                torch._inductor.aoti_compile_and_package(program, package_path=package)
            )
            session = onnx_session(program)
            forms = {
                "eager": lambda head=head: head(x),
                "compiled": lambda compiled=compiled: compiled(x),
                "AOTInductor": lambda library=library: library(x),
                "onnxruntime": lambda session=session: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]),
            }
            compare(f"mask head {name}, {regions} x {channels} x 14 x 14,", forms, repeats)


def onnx_session(program: torch.export.ExportedProgram) -> Any:
    converted = torch.onnx.export(program, dynamo=True, input_names=["x"], verbose=False)
    file = io.BytesIO()
    converted.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # would slow what runs next
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def compare_detectors(repeats: int) -> None:
    batch = [{"image": torch.randint(0, 256, (3, 256, 341), dtype=torch.uint8)}]
    model = own_model(CPU, "implicit")
    compiled = torch.compile(model)
    forms = {
        "eager": lambda: model(batch)[0]["boxes"],
        "compiled": lambda: compiled(batch)[0]["boxes"],
    }
    compare("detector, 256 x 341,", forms, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--regions", type=int, default=32)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=15, help="of Broyden")
    parser.add_argument("--parts", default="head,detector")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {args.threads} threads of a CPU")
    with torch.no_grad():
        if "head" in args.parts:
            compare_heads(args.regions, args.channels, args.steps, args.repeats)
        if "detector" in args.parts:
            compare_detectors(args.repeats)


if __name__ == "__main__":
    main()

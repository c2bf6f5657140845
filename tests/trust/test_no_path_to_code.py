"""No module of IFR turns a file into code, except the Python files of experiments and hosts."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ifr"
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Endings of dotted names that turn data into code or arbitrary objects.
DANGEROUS = (
    "torch.load", "jit.load", "hub.load", "pickle.load", "pickle.loads", "Unpickler", "joblib.load", "np.load",
    "numpy.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "OmegaConf.load",
    "spec_from_file_location", "run_path", "run_module", "os.system", "os.popen", "unpack_archive", "extractall",
)  # fmt: skip
# The permitted calls and their reasons.
PERMITTED = {
    ("checkpoints/files.py", "torch.load"): "with weights_only, behind a check of what the file asks for",
    ("checkpoints/files.py", "ArrayUnpickler"): "finds nothing but the stand-ins for numpy's classes",
    ("experiment.py", "importlib.util.spec_from_file_location"): "config.py and net.py of an experiment that is named",
    ("hosts/cvpods/importing.py", "importlib.util.spec_from_file_location"): "the checkout that IFR_CVPODS names",
}


def test_only_permitted_calls_execute_data():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.endswith("torch.load"):
                assert "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords], path
            if name in BUILTINS or name.endswith(DANGEROUS):
                found.add((path.relative_to(PACKAGE).as_posix(), name))
    assert found == set(PERMITTED)

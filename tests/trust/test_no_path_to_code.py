"""No module of IFR uses what can turn a file into code, but for an experiment's own Python, which is code by intent."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ifr"
BUILTINS = {"eval", "exec", "compile", "__import__"}
# The ends of dotted names by which data becomes code or objects of any class.
DANGEROUS = (
    "torch.load", "jit.load", "hub.load", "pickle.load", "pickle.loads", "Unpickler", "joblib.load", "np.load",
    "numpy.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "OmegaConf.load",
    "spec_from_file_location", "run_path", "run_module", "os.system", "os.popen", "unpack_archive", "extractall",
)  # fmt: skip
# Where one of them is right, and why.
ALLOWED = {
    ("experiment.py", "importlib.util.spec_from_file_location"): "config.py and net.py of an experiment that is named",
    ("hosts/cvpods/importing.py", "importlib.util.spec_from_file_location"): "the cvpods checkout that the user names",
}


def test_nothing_executes_data_but_what_is_allowed_here():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in BUILTINS or name.endswith(DANGEROUS):
                found.add((path.relative_to(PACKAGE).as_posix(), name))
    assert found == set(ALLOWED)

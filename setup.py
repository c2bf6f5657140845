"""Carries the experiments and the page of settings along in a wheel; everything else is declared in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FILES = ("config.py", "net.py", "pods_train.sh", "pods_test.sh")


class BuildWithExperiments(build_py):
    """Copies the experiment folders into the package; in an editable installation they are found beside it."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        for config in ROOT.glob("*/config.py"):
            for name in FILES:
                self._carry(config.with_name(name), f"experiments/{config.parent.name}/{name}")
        self._carry(ROOT / "docs" / "settings.md", "settings.md")

    def _carry(self, source: Path, target: str) -> None:
        path = Path(self.build_lib, "ifr", target)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


setup(cmdclass={"build_py": BuildWithExperiments})

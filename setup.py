"""What setup.cfg cannot say: configs/ goes into the wheel as tgm_scale/configs, and README.md without what only a
checkout shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """An editable install reads configs/ where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", Path(self.build_lib) / "tgm_scale" / "configs", dirs_exist_ok=True)


def long_description() -> str:
    """README.md: pictures are left out, and links into the checkout become their text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)

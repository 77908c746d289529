"""Build of ZoomInNet. Everything but the packages' map is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """The version string of zoominnet/__init__.py, read as text so that building imports nothing."""
    text = (ROOT / "zoominnet" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("zoominnet/__init__.py has no line __version__ = \"...\"")
    return match.group(1)


# kernels/ stands at the root of the repository and is imported as zoominnet.kernels. The committed symlink
# zoominnet/kernels serves a plain checkout; this map serves wheels and checkouts without symlinks.
packages = find_packages(include=["zoominnet", "zoominnet.*"], exclude=["zoominnet.kernels", "zoominnet.kernels.*"])
packages += ["zoominnet.kernels", *(f"zoominnet.kernels.{name}" for name in find_packages("kernels"))]

setup(
    version=version(),
    packages=packages,
    package_dir={"zoominnet.kernels": "kernels"},
    package_data={"zoominnet": ["py.typed"]},
)

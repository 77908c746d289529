"""What extras bring (`pip install zoominnet[EXTRA]`), imported where it is used, and the command where it is absent."""

from __future__ import annotations

import importlib
from types import ModuleType

from zoominnet.errors import UserError

EXTRA_OF = {
    "supervision": "predict",
    "av": "predict",
    "matplotlib": "report",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
}
"""The extra that holds a package."""


class MissingExtraError(UserError):
    """A package that is not part of the base install."""


def extra(module: str, purpose: str) -> ModuleType:
    """Imports a module of a package that an extra brings.

    Args:
        module: its name; its package is in `EXTRA_OF`.
        purpose: what needs it, for the message: "drawing".

    Raises:
        MissingExtraError: it is not installed, or does not load; one line with the command.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise MissingExtraError(
            f"{purpose} needs the package {missing}, which is not installed: pip install 'zoominnet[{EXTRA_OF[package]}]'"
        ) from error
    except (ImportError, OSError) as error:  # a library of the system that it needs
        reason = str(error).partition("\n")[0]
        desktop = (
            "; where OpenCV lacks a desktop's libraries: pip uninstall opencv-python, then pip install "
            "opencv-python-headless"
        )
        raise MissingExtraError(
            f"{purpose} needs the package {package}, which does not load ({reason}){desktop * (package == 'supervision')}"
        ) from error

"""What `pip install zoominnet[predict]` brings: imported where it is used, and named with the command where it is not."""

from __future__ import annotations

import importlib
from types import ModuleType

from zoominnet.errors import UserError

INSTALL = "pip install 'zoominnet[predict]'"


class MissingExtraError(UserError):
    """A package that is not part of the base install."""


def extra(package: str, purpose: str) -> ModuleType:
    """Imports a package of the extra `predict`.

    Args:
        package: its name.
        purpose: what needs it, for the message: "drawing".

    Raises:
        MissingExtraError: it is not installed, or does not load; one line with the command.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise MissingExtraError(f"{purpose} needs the package {missing}, which is not installed: {INSTALL}") from error
    except (ImportError, OSError) as error:  # a library of the system that it needs
        reason = str(error).partition("\n")[0]
        raise MissingExtraError(
            f"{purpose} needs the package {package}, which does not load ({reason}); where OpenCV lacks a desktop's "
            "libraries: pip uninstall opencv-python, then pip install opencv-python-headless"
        ) from error

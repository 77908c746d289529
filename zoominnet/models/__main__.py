"""``python -m zoominnet.models``: the models that come with the package."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
from rich.table import Table

from zoominnet.command import make_console, run_with_options
from zoominnet.models.shipped import FOLDER, shipped_models


@dataclass(frozen=True)
class ModelsConfig:
    """Options of ``python -m zoominnet.models``."""

    json: bool = False
    """Print all that is known of them as JSON instead of a table."""
    debug: bool = False
    """Show the traceback of an error."""


def models(config: ModelsConfig) -> None:
    """Prints the shipped models, what they score and what they cost."""
    if config.json:
        print(json.dumps(shipped_models(), indent=1))
        return
    console = make_console()
    table = Table(box=rich.box.SIMPLE_HEAD)
    for column in ("name", "what it is", "px", "AP", "AP50", "GFLOPs", "M params", "MB"):
        table.add_column(column, justify="left" if column in ("name", "what it is") else "right")
    for name, entry in shipped_models().items():
        table.add_row(
            name,
            entry["summary"],
            str(entry["image_size"]),
            f"{entry['AP']:.4f}",
            f"{entry['AP50']:.4f}",
            f"{entry['gflops']:.2f}",
            f"{entry['parameters'] / 1e6:.2f}",
            f"{entry['bytes'] / 1e6:.2f}",
        )
    console.print(table)
    about = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))
    console.print(f"{about['scenes']}\n{about['use']}", highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.models", ModelsConfig, models, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

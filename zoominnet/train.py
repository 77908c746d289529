"""``python -m zoominnet.train``: train a teacher, then distil a student from it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from zoominnet.command import make_console, run_command
from zoominnet.config import PROFILES, ConfigError, TrainConfig
from zoominnet.engine.distributed import join_ranks, mark_refused, refused_before
from zoominnet.engine.run import CONFIG_FILE, Run
from zoominnet.engine.trainer import DivergedError, Interrupted
from zoominnet.errors import EXIT_USER_ERROR

RESUME_MAY_CHANGE = {
    "resume",
    "debug",
    "workers",
    "loader_timeout",
    "out",
    "keep_checkpoints",
    "checkpoint_every",
    "device",
    "verify_kernels",
    "rank_timeout",
}
"""Options that do not change what a run computes."""


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that the command line asks for.

    Defaults come from --profile, or with --resume from the run in --out.

    Raises:
        ConfigError: an option cannot be used as given.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--profile", default="paper")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--out", type=Path)
    known, _ = first.parse_known_args(arguments)
    default = PROFILES.get(known.profile, PROFILES["paper"])
    saved = None
    if known.resume:
        saved = read_config((known.out or default.out) / CONFIG_FILE)
        default = saved
    config = tyro.cli(
        TrainConfig, args=arguments, default=default, prog="python -m zoominnet.train", description=__doc__
    )
    config.check()
    if saved is not None:
        changed = [
            f"--{f.name.replace('_', '-')} (was {getattr(saved, f.name)}, is {getattr(config, f.name)})"
            for f in dataclasses.fields(TrainConfig)
            if f.name not in RESUME_MAY_CHANGE and getattr(saved, f.name) != getattr(config, f.name)
        ]
        if changed:
            raise ConfigError(
                f"--resume: {', '.join(changed)}: a run goes on as it began; start another in a new --out"
            )
    return config


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run wrote.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["out"] = Path(values["out"])
        for name in ("synthetic_images", "decay_at"):
            values[name] = tuple(values[name])
        return TrainConfig(**values)
    except FileNotFoundError as error:
        raise ConfigError(
            f"--resume: {path} does not exist; name the --out of a run that was begun, or leave out --resume"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--resume: {path} is damaged or of another version; start another run in a new --out"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def job() -> None:
        config = parse(arguments)
        with join_ranks(config.device, config.rank_timeout) as ranks:
            try:
                Run(config, make_console(standing=True) if ranks.first else Console(quiet=True), ranks).run()
            except (DivergedError, Interrupted) as error:
                ranks.wait()  # torchrun kills the others when one ends: the first may still be writing
                if ranks.first:
                    raise
                sys.exit(error.exit_status)  # every rank ends by it; the first one says so

    if refused_before():
        print("zoominnet.train: refused in an earlier attempt of this launch, which says why", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        status = run_command("zoominnet.train", job, debug="--debug" in arguments)
    except SystemExit as ended:  # of tyro, which has said why
        if ended.code == EXIT_USER_ERROR:
            mark_refused()
        raise
    if status == EXIT_USER_ERROR:
        mark_refused()
    return status


if __name__ == "__main__":
    sys.exit(main())

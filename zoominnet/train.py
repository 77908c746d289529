"""``python -m zoominnet.train``: train a teacher, then distil a student from it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from zoominnet.command import make_console, run_command
from zoominnet.config import PROFILES, ConfigError, TrainConfig
from zoominnet.engine.distributed import join_ranks, mark_refused, refused_before
from zoominnet.engine.folder import CONFIG_FILE
from zoominnet.engine.run import Run
from zoominnet.engine.stopping import Interrupted
from zoominnet.engine.watchers.skips import DivergedError
from zoominnet.errors import EXIT_USER_ERROR

THREE_WAY = ("--resume", "--fused-kernels")
"""Options that are flags on the command line, with --no- before them too, and have a third value."""


def train(config: TrainConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Trains a teacher, or takes one, distils a student from it and measures both.

    Args:
        config: what to train, on which data, into which folder.
        console: where to say what goes on; None is standard output, ``Console(quiet=True)`` nowhere.

    Returns:
        What ``result.json`` in the run's folder holds: "checkpoint", the path of the best student, and under "models" the
        scores, GFLOPs and parameters of "teacher" and "student".

    Raises:
        UserError: an option, a file or data that cannot be used; training that diverged; a stop signal, after a checkpoint
            was written (:mod:`zoominnet.errors`). Of several processes those behind the first end by SystemExit instead.

    Example:
        >>> config = zoominnet.TrainConfig(data="DATA", student="la", epochs=12, out="runs/la")
        >>> zoominnet.train(config)["models"]["student"]["AP"]
    """
    config.check()
    if config.resume == "auto":
        config = dataclasses.replace(config, resume=(config.out / CONFIG_FILE).exists())
    if config.resume:
        begun = read_config(config.out / CONFIG_FILE)
        if config.amp == "auto":
            config = dataclasses.replace(config, amp=begun.amp)
    if config.resume and (changes := config.settled().changes_from(begun)):
        raise ConfigError(f"--resume: {', '.join(changes)}: a run goes on as it began; start another in a new --out")
    with join_ranks(config.device, config.rank_timeout) as ranks:
        if not ranks.first:
            console = Console(quiet=True)
        try:
            return Run(config, console or make_console(standing=True), ranks).run()
        except (DivergedError, Interrupted) as error:
            ranks.wait()  # torchrun kills the others when one ends: the first may still be writing
            if ranks.first:
                raise
            sys.exit(error.exit_status)  # every rank ends by it; the first one says so


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that the command line asks for.

    Defaults come from --profile, or with --resume from the run in --out.

    Raises:
        ConfigError: there is no run to go on with.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--profile", default="paper")
    first.add_argument("--resume", nargs="?", default="False", const="True")
    first.add_argument("--out", type=Path)
    known, _ = first.parse_known_args(arguments)
    default = PROFILES.get(known.profile, PROFILES["paper"])
    file = (known.out or default.out) / CONFIG_FILE
    if known.resume == "True" or (known.resume == "auto" and file.exists()):
        default = read_config(file)
    return tyro.cli(
        TrainConfig,
        args=spell_out(arguments),
        default=default,
        prog="python -m zoominnet.train",
        description=__doc__,
    )


def spell_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with the flags of `THREE_WAY` as tyro takes an option of three values: --resume as --resume True,
    --no-resume as --resume False."""
    spelt = []
    for argument, follower in zip_longest(arguments, arguments[1:], fillvalue="--"):
        if argument in THREE_WAY and follower.startswith("--"):
            spelt += [argument, "True"]
        elif argument.replace("--no-", "--", 1) in THREE_WAY and argument not in THREE_WAY:
            spelt += [argument.replace("--no-", "--", 1), "False"]
        else:
            spelt += [argument]
    return spelt


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run wrote.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        return TrainConfig(**json.loads(path.read_text(encoding="utf-8")))
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
    if refused_before():
        print("zoominnet.train: refused in an earlier attempt of this launch, which says why", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        status = run_command("zoominnet.train", lambda: train(parse(arguments)), debug="--debug" in arguments)
    except SystemExit as ended:  # of tyro, which has said why
        if ended.code == EXIT_USER_ERROR:
            mark_refused()
        raise
    if status == EXIT_USER_ERROR:
        mark_refused()
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Rules for the values of options, written beside the fields of an options' dataclass as ``Annotated[type, RULE]``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterator
from typing import Any

from zoominnet.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        holds: whether a value is so.
        says: what is said of one that is not, behind the option and its value.
    """

    holds: Callable[[Any], bool]
    says: str


def at_least(least: int) -> Rule:
    """At least `least`."""
    return Rule(lambda value: value >= least, f"is not at least {least}")


def at_most(most: int) -> Rule:
    """At most `most`."""
    return Rule(lambda value: value <= most, f"is over {most}")


def multiple_of(divisor: int) -> Rule:
    """A multiple of `divisor`."""
    return Rule(lambda value: value % divisor == 0, f"is not a multiple of {divisor}")


POSITIVE = Rule(lambda value: value > 0, "is not positive")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "is negative")
OVER_0_BELOW_1 = Rule(lambda value: 0 < value < 1, "is not over 0 and below 1")
FROM_0_BELOW_1 = Rule(lambda value: 0 <= value < 1, "is not in [0, 1)")


def option(field: str) -> str:
    """The command line's name of a field."""
    return f"--{field.replace('_', '-')}"


def option_words(options: Any, default: Any, but: Collection[str] = ()) -> list[str]:
    """The words of the command line for the fields, but for those of `but`, in which `options` differs from `default`."""
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in but or value == getattr(default, field.name):
            continue
        name = option(field.name)
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        else:
            words += [name, *map(str, flat(value))]
    return words


def flat(value: Any) -> list[Any]:
    """The values in a tuple of values and tuples."""
    return [each for part in value for each in flat(part)] if isinstance(value, tuple) else [value]


def beside_fields(options: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Of each field of a dataclass its name and what stands beside its type."""
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        yield field.name, getattr(hints[field.name], "__metadata__", ())


def check_fields(options: Any, error: type[UserError] = UserError) -> None:
    """Refuses a value that breaks a rule beside its field; None breaks none.

    Args:
        options: a dataclass.
        error: what is raised.

    Raises:
        UserError: one line that names the option and what its value is not.
    """
    for name, beside in beside_fields(options):
        value = getattr(options, name)
        for rule in beside:
            if isinstance(rule, Rule) and value is not None and not rule.holds(value):
                raise error(f"{option(name)}: {value} {rule.says}")

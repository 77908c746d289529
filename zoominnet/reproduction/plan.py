"""What a table of the paper consists of: rows, and the trainings whose models they measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from zoominnet.config import NO_STUDENT, TrainConfig

Options = Mapping[str, Any]
"""Fields of `TrainConfig` and their values."""


@dataclass(frozen=True, eq=False)
class Training:
    """A training, which every table that names it shares.

    Attributes:
        name: of its folder.
        options: what differs from the scale's configuration.
        teacher: the training whose model it learns from or begins with; None where there is none.
        derived: what differs and follows from the scale's configuration.
    """

    name: str
    options: Options
    teacher: Training | None = None
    derived: Callable[[TrainConfig], Options] = field(default=lambda scale: {})

    @property
    def once(self) -> bool:
        """Whether one run serves the students of all seeds: so it is with teachers."""
        return self.options["student"] == NO_STUDENT

    def but(self, name: str, **options: Any) -> Training:
        """The same with other options."""
        return Training(name, {**self.options, **options}, self.teacher, self.derived)

    def taught_by(self, teacher: Training) -> Training:
        """The same with another teacher."""
        return Training(self.name, self.options, teacher, self.derived)


@dataclass(frozen=True, eq=False)
class Row:
    """A line of a table.

    Attributes:
        label: as the paper calls it.
        training: whose model is measured.
        paper: what the paper has in `Item.scores`' order; None for a row of ours.
        side: of the input that the model is measured at, in units of the side that it was trained at.
        after: the model as it is after this share of its epochs.
        against: the row that its gain is over; None for one that others are compared with.
    """

    label: str
    training: Training
    paper: tuple[float, ...] | None = None
    side: Fraction = Fraction(1)
    after: Fraction = Fraction(1)
    against: Row | None = None


@dataclass(frozen=True)
class Item:
    """A table.

    Attributes:
        title: what it shows, and where it is in the paper.
        scores: its columns, names of COCO's scores.
        rows: in the paper's order.
        more: rows that the paper does not have, run after all seeds of those.
        pictured: rows whose models are shown on images; the last one's student tells whose masks.
    """

    title: str
    scores: tuple[str, ...]
    rows: tuple[Row, ...]
    more: tuple[Row, ...] = ()
    pictured: tuple[Row, ...] = ()

    def trainings(self, seeds: range) -> Iterator[tuple[Training, int]]:
        """What is to be run, each behind the teacher that it needs, in an order in which a part of it is of use: every row
        by the first seed, then by the next."""
        known = set()
        for rows in (self.rows, self.more):
            for seed in seeds:
                for row in rows:
                    chain = [row.training]
                    while chain[0].teacher is not None:
                        chain.insert(0, chain[0].teacher)
                    for training in chain:
                        key = (training.name, seeds[0] if training.once else seed)
                        if key not in known:
                            known.add(key)
                            yield training, key[1]

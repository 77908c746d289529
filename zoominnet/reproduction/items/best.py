"""The profile `best`, all that gains together, and the same without distillation, which shows what of it is distillation."""

from zoominnet.config import BEST
from zoominnet.reproduction.items.beyond import twice_as_long
from zoominnet.reproduction.items.table3 import (
    FA_CSKD_ROW,
    FA_ROW,
    LA_CSKD_ROW,
    LA_ROW,
    SNET_CSKD_ROW,
    SNET_ROW,
    TEACHER,
    TNET_ROW,
)
from zoominnet.reproduction.items.teachers import TEACHER_FUSED
from zoominnet.reproduction.plan import Item, Row, Training


def best_and_its_control(student: str, label: str, cskd: Row) -> tuple[Row, Row]:
    """The profile `best`, and the same without distillation."""
    control = {"student": student, "distill": False, "init_from_teacher": True}
    return Row(
        f"{label}, best",
        Training(f"{student}-best", {"student": student, **BEST}, TEACHER, twice_as_long),
        against=cskd,
    ), Row(
        f"{label} from the teacher's weights, twice as long, not distilled",
        Training(f"{student}-from-teacher-longer", control, TEACHER, twice_as_long),
        against=cskd,
    )


def by_the_fused_teacher(best: Row, control: Row) -> tuple[Row, Row]:
    """Both rows with a fused teacher, each over the row that it differs from."""

    def fused(row: Row) -> Row:
        training = row.training.but(f"{row.training.name}-fused").taught_by(TEACHER_FUSED)
        return Row(f"{row.label}, fused teacher", training, against=row)

    return fused(best), fused(control)


FA_BEST_ROWS = best_and_its_control("fa", "SNet + FA", FA_CSKD_ROW)


BEST_PROFILE = Item(
    "The profile best, and its control without distillation",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        FA_ROW,
        FA_CSKD_ROW,
        *FA_BEST_ROWS,
        LA_ROW,
        LA_CSKD_ROW,
        *best_and_its_control("la", "SNet + LA", LA_CSKD_ROW),
        SNET_ROW,
        SNET_CSKD_ROW,
        *best_and_its_control("snet", "SNet", SNET_CSKD_ROW),
    ),
    more=by_the_fused_teacher(*FA_BEST_ROWS),
)

"""What the paper does not do: each addition to FA with CSKD by itself, and those that gain together."""

from collections.abc import Mapping
from typing import Any

from zoominnet.config import BEST, PROFILES, TrainConfig
from zoominnet.reproduction.items.table3 import (
    FA_CSKD_ROW,
    FA_ROW,
    LA_CSKD_ROW,
    LA_ROW,
    SNET_CSKD_ROW,
    SNET_ROW,
    TEACHER,
    TNET_ROW,
    distilled,
)
from zoominnet.reproduction.plan import Item, Row, Training

TEACHER_BOTH = TEACHER.but("teacher-both-scales", teacher_scales="both")
TEACHER_FUSED = TEACHER.but("teacher-fused", teacher_model="teacher-fused")
LITERAL = {
    name: getattr(PROFILES["paper"], name) for name in ("distill_normalise", "lambda_distill", "distill_gradient_ratio")
}
RESPONSE = (("pa-l2", 1.0), ("response", 300.0))


def _twice_as_long(scale: TrainConfig) -> Mapping[str, Any]:
    return {"epochs": 2 * scale.epochs}


def with_(label: str, name: str, **options: object) -> Row:
    """FA with CSKD and an addition."""
    return Row(f"SNet + FA + CSKD, {label}", distilled("fa", name, **options), against=FA_CSKD_ROW)


LONGER = Training("fa-longer", {"student": "fa", "distill": False}, derived=_twice_as_long)
FINE_TUNED = Training("fa-from-teacher", {"student": "fa", "distill": False, "init_from_teacher": True}, TEACHER)
LONGER_CSKD = Training("fa-cskd-longer", {"student": "fa"}, TEACHER, _twice_as_long)


def best_and_its_control(student: str, label: str, cskd: Row) -> tuple[Row, Row]:
    """The profile `best`, and the same without distillation, which shows what of it is distillation."""
    control = Row(
        f"{label} from the teacher's weights, twice as long, not distilled",
        Training(
            f"{student}-from-teacher-longer",
            {"student": student, "distill": False, "init_from_teacher": True},
            TEACHER,
            _twice_as_long,
        ),
        against=cskd,
    )
    return Row(
        f"{label}, best",
        Training(f"{student}-best", {"student": student, **BEST}, TEACHER, _twice_as_long),
        against=cskd,
    ), control


BEYOND = Item(
    "Beyond the paper",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        FA_ROW,
        FA_CSKD_ROW,
        with_("the loss and its weight as the paper's", "literal", **LITERAL),
        with_("features not standardised", "plain", distill_normalise=False),
        with_("from the teacher's weights", "init", init_from_teacher=True),
        Row("SNet + FA from the teacher's weights, not distilled", FINE_TUNED, against=FA_ROW),
        with_("and its predictions", "response", distill_losses=RESPONSE),
        with_("its predictions alone", "response-alone", distill_losses=(("response", 1.0),)),
        with_("average of the weights", "ema", ema=0.99),
        with_("each box has its best anchors", "own-best", assigner="max-iou-own"),
        with_("crops", "crop", augment=("crop",)),
        with_("mosaics", "mosaic", augment=("mosaic",)),
        Row("SNet + FA + CSKD, twice as long", LONGER_CSKD, against=FA_CSKD_ROW),
        Row("SNet + FA, twice as long", LONGER, against=FA_ROW),
        Row("TNet trained at both sizes", TEACHER_BOTH, against=TNET_ROW),
        Row(
            "SNet + FA + CSKD, teacher of both sizes",
            distilled("fa", "both-scales").taught_by(TEACHER_BOTH),
            against=FA_CSKD_ROW,
        ),
        Row("TNet fused of both sizes", TEACHER_FUSED, against=TNET_ROW),
        Row("SNet + FA + CSKD, fused teacher", distilled("fa", "fused").taught_by(TEACHER_FUSED), against=FA_CSKD_ROW),
        *best_and_its_control("fa", "SNet + FA", FA_CSKD_ROW),
        LA_ROW,
        LA_CSKD_ROW,
        *best_and_its_control("la", "SNet + LA", LA_CSKD_ROW),
        SNET_ROW,
        SNET_CSKD_ROW,
        *best_and_its_control("snet", "SNet", SNET_CSKD_ROW),
    ),
)

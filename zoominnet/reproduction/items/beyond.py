"""What the paper does not do: each addition to FA with CSKD by itself."""

from collections.abc import Mapping
from typing import Any

from zoominnet.config import PROFILES, TrainConfig
from zoominnet.reproduction.items.table3 import FA_CSKD_ROW, FA_ROW, TEACHER, TNET_ROW, distilled
from zoominnet.reproduction.plan import Item, Row, Training

LITERAL = {
    name: getattr(PROFILES["paper"], name) for name in ("distill_normalise", "lambda_distill", "distill_gradient_ratio")
}
RESPONSE = (("pa-l2", 1.0), ("response", 300.0))


def twice_as_long(scale: TrainConfig) -> Mapping[str, Any]:
    """Twice the epochs."""
    return {"epochs": 2 * scale.epochs}


def with_(label: str, name: str, **options: object) -> Row:
    """FA with CSKD and an addition."""
    return Row(f"SNet + FA + CSKD, {label}", distilled("fa", name, **options), against=FA_CSKD_ROW)


INIT_ROW = with_("from the teacher's weights", "init", init_from_teacher=True)
LONGER = Training("fa-longer", {"student": "fa", "distill": False}, derived=twice_as_long)
FINE_TUNED = Training("fa-from-teacher", {"student": "fa", "distill": False, "init_from_teacher": True}, TEACHER)
LONGER_CSKD = Training("fa-cskd-longer", {"student": "fa"}, TEACHER, twice_as_long)

BEYOND = Item(
    "Beyond the paper: one addition at a time",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        FA_ROW,
        FA_CSKD_ROW,
        with_("the loss and its weight as the paper's", "literal", **LITERAL),
        with_("features not standardised", "plain", distill_normalise=False),
        INIT_ROW,
        Row("SNet + FA from the teacher's weights, not distilled", FINE_TUNED, against=FA_ROW),
        with_("and its predictions", "response", distill_losses=RESPONSE),
        with_("its predictions alone", "response-alone", distill_losses=(("response", 1.0),)),
        with_("average of the weights", "ema", ema=0.99),
        with_("each box has its best anchors", "own-best", assigner="max-iou-own"),
        with_("crops", "crop", augment=("crop",)),
        with_("mosaics", "mosaic", augment=("mosaic",)),
        Row("SNet + FA + CSKD, twice as long", LONGER_CSKD, against=FA_CSKD_ROW),
        Row("SNet + FA, twice as long", LONGER, against=FA_ROW),
    ),
)

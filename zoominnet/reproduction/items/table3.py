"""Table 3: what layer adaption, feature level alignment and distillation bring."""

from zoominnet.reproduction.plan import Item, Row, Training

TEACHER = Training("teacher", {"student": "none"})


def alone(student: str) -> Training:
    """A student without a teacher."""
    return Training(student, {"student": student, "distill": False})


def distilled(student: str, variant: str = "", **options: object) -> Training:
    """A student with CSKD."""
    return Training("-".join(filter(None, (student, "cskd", variant))), {"student": student, **options}, TEACHER)


SNET, LA, FA_THIN, FA, SNET_12PX = (alone(name) for name in ("snet", "la", "fa-thin", "fa", "snet-12px"))

TNET_ROW = Row("TNet (2x image)", TEACHER, (0.217, 0.123, 0.338, 0.446))
SNET_ROW = Row("SNet (1x image)", SNET, (0.111, 0.028, 0.184, 0.377))
LA_ROW = Row("SNet + LA", LA, (0.125, 0.054, 0.201, 0.318))
FA_THIN_ROW = Row("SNet + FA_ThinHead", FA_THIN, (0.140, 0.067, 0.217, 0.323))
FA_ROW = Row("SNet + FA", FA, (0.150, 0.077, 0.233, 0.335))
SNET_12PX_ROW = Row("SNet, anchors from 12 px", SNET_12PX)

FA_CSKD_ROW = Row("SNet + FA + CSKD", distilled("fa"), (0.162, 0.079, 0.251, 0.369), against=FA_ROW)
LA_CSKD_ROW = Row("SNet + LA + CSKD", distilled("la"), (0.135, 0.060, 0.215, 0.352), against=LA_ROW)
SNET_CSKD_ROW = Row("SNet + CSKD", distilled("snet"), (0.116, 0.028, 0.191, 0.359), against=SNET_ROW)


def variant(label: str, name: str, **options: object) -> Row:
    """FA with CSKD, otherwise distilled."""
    return Row(f"SNet + FA + CSKD, {label}", distilled("fa", name, **options), against=FA_ROW)


TABLE_3 = Item(
    "Table 3: layer adaption (LA), feature level alignment (FA) and cross-scale distillation (CSKD)",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        SNET_ROW,
        SNET_CSKD_ROW,
        LA_ROW,
        LA_CSKD_ROW,
        FA_THIN_ROW,
        Row("SNet + FA_ThinHead + CSKD", distilled("fa-thin"), (0.142, 0.065, 0.221, 0.333), against=FA_THIN_ROW),
        FA_ROW,
        FA_CSKD_ROW,
    ),
    more=(
        # Anchors of SNet are twice as large as those of LA and FA: how much of their gain is that?
        SNET_12PX_ROW,
        Row("SNet, anchors from 12 px, + CSKD", distilled("snet-12px"), against=SNET_12PX_ROW),
        # The adaptive key positions against others.
        variant("mask 0.5 of the highest IoU", "half", mask_threshold=0.5),
        variant("mask by overlapping pairs alone", "nonzero", mask_threshold="adaptive-nonzero"),
        variant("no mask", "dense", mask_boxes="everywhere"),
        variant("after the towers", "tower", distill_at="tower"),
    ),
    pictured=(TNET_ROW, FA_ROW, FA_CSKD_ROW),
)

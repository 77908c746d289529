"""What kind of teacher: of one image size, of both, one that fuses both (MSAD, Qi et al., CVPR 2021); what it hands over."""

from zoominnet.reproduction.items.beyond import INIT_ROW, RESPONSE
from zoominnet.reproduction.items.table3 import FA_CSKD_ROW, TEACHER, TNET_ROW, distilled
from zoominnet.reproduction.plan import Item, Row

TEACHER_BOTH = TEACHER.but("teacher-both-scales", teacher_scales="both")
TEACHER_FUSED = TEACHER.but("teacher-fused", teacher_model="teacher-fused")

TEACHERS = Item(
    "Teachers: of the large image, of both sizes, and fused of both",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        FA_CSKD_ROW,
        Row("TNet trained at both sizes", TEACHER_BOTH, against=TNET_ROW),
        Row(
            "SNet + FA + CSKD, teacher of both sizes",
            distilled("fa", "both-scales").taught_by(TEACHER_BOTH),
            against=FA_CSKD_ROW,
        ),
        Row("TNet fused of both sizes", TEACHER_FUSED, against=TNET_ROW),
        Row("SNet + FA + CSKD, fused teacher", distilled("fa", "fused").taught_by(TEACHER_FUSED), against=FA_CSKD_ROW),
    ),
    more=(
        INIT_ROW,
        Row(
            "SNet + FA + CSKD, from the teacher's weights and with its predictions",
            distilled("fa", "init-response", init_from_teacher=True, distill_losses=RESPONSE),
            against=INIT_ROW,
        ),
        Row(
            "SNet + FA + CSKD, teacher of both sizes and its weights",
            distilled("fa", "both-scales-init", init_from_teacher=True).taught_by(TEACHER_BOTH),
            against=INIT_ROW,
        ),
        Row(
            "SNet + FA + CSKD, fused teacher and its weights",
            distilled("fa", "fused-init", init_from_teacher=True).taught_by(TEACHER_FUSED),
            against=INIT_ROW,
        ),
    ),
)

"""Table 9: distillation against fine-tuning the teacher's weights at the student's size."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from zoominnet.config import TrainConfig
from zoominnet.reproduction.items.table3 import SNET, TEACHER, distilled
from zoominnet.reproduction.plan import Item, Row, Training

FIRST_DROP = 0.3
"""Of the first way of fine-tuning: after 3 of 10 epochs."""


def _schedule(scale: TrainConfig, lr: float, decay_at: tuple[float, ...]) -> Mapping[str, Any]:
    epochs = max(2, scale.epochs // 2)  # 10 of the paper's 20
    return {
        "epochs": epochs,
        "val_every": epochs // 2,
        "lr": lr,
        "decay_at": decay_at,
        "decay_factor": 0.1,
        "warmup_steps": 0,
    }


def _last_lr(scale: TrainConfig) -> float:
    return scale.lr * scale.decay_factor ** len(scale.decay_at)


FINE_TUNED = {"student": "snet", "init_from_teacher": True, "distill": False}
LR1 = Training("fine-tune-lr1", FINE_TUNED, TEACHER, lambda scale: _schedule(scale, _last_lr(scale), (FIRST_DROP,)))
LR2 = Training("fine-tune-lr2", FINE_TUNED, TEACHER, lambda scale: _schedule(scale, _last_lr(scale) / 10, ()))
HALF = Fraction(1, 2)

SNET_ROW = Row("train512 + test512", SNET, (0.111, 0.028, 0.184, 0.377, 0.061, 0.302, 0.472))

TABLE_9 = Item(
    "Table 9: fine-tuning the teacher's weights at the student's size, and distillation",
    ("AP", "AP_S", "AP_M", "AP_L", "AR_S", "AR_M", "AR_L"),
    (
        Row("train1024 + test1024", TEACHER, (0.217, 0.123, 0.338, 0.446, 0.198, 0.474, 0.586)),
        Row(
            "train1024 + test512",
            TEACHER,
            (0.117, 0.027, 0.205, 0.480, 0.058, 0.318, 0.624),
            side=HALF,
            against=SNET_ROW,
        ),
        SNET_ROW,
        Row("lr1_fine-tune_e25", LR1, (0.120, 0.026, 0.212, 0.461, 0.056, 0.315, 0.605), after=HALF, against=SNET_ROW),
        Row("lr1_fine-tune_e30", LR1, (0.120, 0.026, 0.214, 0.463, 0.056, 0.319, 0.604), against=SNET_ROW),
        Row("lr2_fine-tune_e25", LR2, (0.118, 0.026, 0.206, 0.481, 0.056, 0.313, 0.618), after=HALF, against=SNET_ROW),
        Row("lr2_fine-tune_e30", LR2, (0.118, 0.026, 0.207, 0.481, 0.056, 0.313, 0.618), against=SNET_ROW),
        Row("LA_CSKD", distilled("la"), (0.135, 0.060, 0.215, 0.326, 0.110, 0.341, 0.452), against=SNET_ROW),
    ),
)

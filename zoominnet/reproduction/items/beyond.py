"""What the paper does not do: each addition by itself, and the best of them together."""

from zoominnet.reproduction.items.table3 import (
    FA_CSKD_ROW,
    FA_ROW,
    TNET_ROW,
    distilled,
)
from zoominnet.reproduction.plan import Item, Row

BEYOND = Item(
    "Beyond the paper",
    ("AP", "AP_S", "AP_M", "AP_L"),
    (
        TNET_ROW,
        FA_ROW,
        FA_CSKD_ROW,
        Row(
            "+ response",
            distilled("fa", "response", distill_losses=(("pa-l2", 1.0), ("response", 300.0))),
            against=FA_CSKD_ROW,
        ),
    ),
)

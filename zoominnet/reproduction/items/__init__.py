"""The tables by name. A new one is a file here and an entry below."""

from zoominnet.reproduction.items.best import BEST_PROFILE
from zoominnet.reproduction.items.beyond import BEYOND
from zoominnet.reproduction.items.table2 import TABLE_2
from zoominnet.reproduction.items.table3 import TABLE_3
from zoominnet.reproduction.items.table9 import TABLE_9
from zoominnet.reproduction.items.teachers import TEACHERS
from zoominnet.reproduction.plan import Item

ITEMS: dict[str, Item] = {
    "table3": TABLE_3,
    "table9": TABLE_9,
    "table2": TABLE_2,
    "beyond": BEYOND,
    "teachers": TEACHERS,
    "best": BEST_PROFILE,
}

__all__ = ["ITEMS"]

"""Table 2: one model measured at several sizes, and one trained at twice the size."""

from fractions import Fraction

from zoominnet.reproduction.items.table3 import SNET, TEACHER
from zoominnet.reproduction.plan import Item, Row

TABLE_2 = Item(
    "Table 2: the size of the image, in testing and in training",
    ("AP", "AP_S", "AP_M", "AP_L", "AR_S", "AR_M", "AR_L"),
    (
        Row("Imgsize256", SNET, (0.043, 0.002, 0.056, 0.340, 0.014, 0.112, 0.465), side=Fraction(1, 2)),
        Row("Imgsize384", SNET, (0.079, 0.011, 0.127, 0.349, 0.035, 0.212, 0.471), side=Fraction(3, 4)),
        Row("Imgsize512 (initial)", SNET, (0.111, 0.028, 0.184, 0.377, 0.061, 0.302, 0.472)),
        Row("Imgsize768", SNET, (0.143, 0.062, 0.226, 0.301, 0.116, 0.359, 0.435), side=Fraction(3, 2)),
        Row("Imgsize1024", SNET, (0.143, 0.077, 0.210, 0.264, 0.157, 0.344, 0.360), side=Fraction(2)),
        Row("Imgsize1024 + retrain", TEACHER, (0.217, 0.123, 0.338, 0.446, 0.198, 0.474, 0.586)),
    ),
)

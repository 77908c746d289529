"""The options that tiny trainings start from: ResNet-18 from random values by SGD, on synthetic scenes or what is given."""

from collections.abc import Callable

Train = Callable[..., int]
"""Of the fixture `tiny_train`: options, and the run's folder as `out`; gives the exit status."""

SMALL_RUN = [
    *("--ignored", "honour"),
    *("--backbone", "resnet18"),
    *("--weights", "none"),
    *("--channels", "64"),
    *("--image-size", "128"),
    *("--epochs", "4"),
    *("--lr", "0.02"),
    *("--decay-at", "0.7", "0.9"),
    *("--clip-grad-norm", "10"),
    *("--amp", "off"),  # the same on every processor
]

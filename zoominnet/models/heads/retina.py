"""RetinaNet's head (Lin et al. 2017): two towers of convolutions and a prediction convolution each."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoominnet.kernels import upsample_nearest2x
from zoominnet.models.heads.canvas import Canvas
from zoominnet.models.interfaces import Head, LaPredictor

ON_CANVAS = 3
"""So many of the smallest levels share one map in training."""
PRIOR_PROBABILITY = 0.01
"""Every anchor starts as an object with this probability (RetinaNet, section 4.1)."""


def phase_weight(weight: Tensor) -> Tensor:
    """The transposed convolution that equals a 3x3 convolution, padding 1, of the nearest-2x-upsampled map.

    Of the three rows of the upsampled map under the kernel, two are copies of one row of the small map, so each of the
    four phases of the output is a 2x2 convolution of the small map, of taps that are sums of the kernel's. Together they
    are one transposed convolution of stride 2 and padding 1, with 16 multiply-adds for the plain form's 36.

    Args:
        weight: [O, C, 3, 3].

    Returns:
        [C, O, 4, 4].
    """
    for dim in (2, 3):
        above, middle, below = weight.unbind(dim)
        # What row i adds to the output's rows 2i - 1, 2i, 2i + 1 and 2i + 2.
        weight = torch.stack([below, middle + below, above + middle, above], dim)
    return weight.transpose(0, 1)


class Subnet(nn.Module):
    """`depth` 3x3 convolutions with ReLU, then the prediction convolution; shared by the levels.

    Args:
        depth: convolutions of the tower.
        outputs: channels predicted a cell.
        channels: of the features and the tower.
        upsample: layer adaption (LA): nearest 2x between tower and prediction.
    """

    def __init__(self, depth: int, outputs: int, channels: int = 256, *, upsample: bool = False) -> None:
        super().__init__()
        self.upsample = upsample
        self.la_predictor: LaPredictor = "phase"
        self.backend = "auto"
        self.tower = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.predict = nn.Conv2d(channels, outputs, 3, padding=1)
        for conv in (*self.tower, self.predict):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def run_tower(self, features: list[Tensor]) -> list[Tensor]:
        """[B, C, h, w] a level -> the tower's outputs, same shapes."""
        maps, canvas = self._gathered(features)
        outputs: list[Tensor] = []
        for x in maps:
            mask = canvas.mask(x) if canvas is not None and len(outputs) == len(maps) - 1 else None
            for i, conv in enumerate(self.tower):
                x = F.relu(conv(x if mask is None or i == 0 else x * mask))
            outputs.append(x)
        return outputs if canvas is None else [*outputs[:-1], *canvas.take(outputs[-1])]

    def _gathered(self, maps: list[Tensor]) -> tuple[list[Tensor], Canvas | None]:
        """In training the smallest maps are one; what is counted and deployed has each by itself."""
        return Canvas.with_last(maps, ON_CANVAS) if self.training and len(maps) >= ON_CANVAS else (maps, None)

    def predict_from_tower(self, features: list[Tensor]) -> list[Tensor]:
        """Tower outputs [B, C, h, w] -> [B, outputs, h, w], or [B, outputs, 2h, 2w] with LA, a tensor a level each."""
        maps, canvas = self._gathered(features)
        outputs = self._predict(maps)
        return outputs if canvas is None else [*outputs[:-1], *canvas.take(outputs[-1], 2 if self.upsample else 1)]

    def _predict(self, features: list[Tensor]) -> list[Tensor]:
        predict = self.predict
        if not self.upsample:
            return [predict(x) for x in features]
        if self.la_predictor == "plain":
            return [predict(upsample_nearest2x(x, backend=self.backend)) for x in features]
        weight = phase_weight(predict.weight)
        return [F.conv_transpose2d(x, weight, predict.bias, stride=2, padding=1) for x in features]


class RetinaHead(Head):
    """Class logits and box deltas for every anchor of every level.

    Args:
        num_classes: classes without background.
        num_anchors: K, anchors a cell.
        depth: convolutions of each tower.
        channels: of the features.
        upsample: layer adaption (LA) in both subnets.
    """

    def __init__(
        self, num_classes: int, num_anchors: int, depth: int, channels: int = 256, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.num_classes, self.num_anchors = num_classes, num_anchors
        self.classification = Subnet(depth, num_anchors * num_classes, channels, upsample=upsample)
        self.regression = Subnet(depth, num_anchors * 4, channels, upsample=upsample)
        prior_logit = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        with torch.no_grad():
            self.classification.predict.bias.fill_(prior_logit)  # type: ignore[union-attr]

    def set_backend(self, backend: str) -> None:
        self.classification.backend = self.regression.backend = backend

    def set_la_predictor(self, form: LaPredictor) -> None:
        self.classification.la_predictor = self.regression.la_predictor = form

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return (
            self.classification.run_tower(features),
            self.regression.run_tower(features),
        )

    def predict_levels(self, towers: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        logits = [self._flatten(x, self.num_classes) for x in self.classification.predict_from_tower(towers[0])]
        deltas = [self._flatten(x, 4) for x in self.regression.predict_from_tower(towers[1])]
        return logits, deltas

    def _flatten(self, x: Tensor, width: int) -> Tensor:
        b, _, h, w = x.shape
        return x.view(b, self.num_anchors, width, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, width)

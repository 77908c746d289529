"""Feature pyramid network (Lin et al. 2017) over any run of ResNet stages, with extra levels taken from C5."""

from torch import Tensor, nn
from torch.nn import functional as F

from zoominnet.kernels import upsample_nearest2x
from zoominnet.models.interfaces import Neck


class FeaturePyramid(Neck):
    """P{first} .. P{last} with `channels` each; levels past P5 are stride-2 3x3 convolutions on C5 (`on_input`).

    torchvision's FeaturePyramidNetwork numbers its modules from the first level it is given; here they are named by
    stage ("c3", "p3"), so that weights map by stage whichever levels a model uses, and the top-down step is this
    project's fused upsample-and-add.

    Args:
        stage_channels: channels of C2, C3, C4, C5.
        first, last: the first and last pyramid level; first in 2..5, last in 5..7.
        channels: of every output.
    """

    def __init__(self, stage_channels: tuple[int, ...], first: int, last: int, channels: int = 256) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.lateral = nn.ModuleDict({f"c{s}": nn.Conv2d(stage_channels[s - 2], channels, 1) for s in range(first, 6)})
        self.output = nn.ModuleDict({f"p{s}": nn.Conv2d(channels, channels, 3, padding=1) for s in range(first, 6)})
        self.extra = nn.ModuleDict(
            {
                f"p{s}": nn.Conv2d(stage_channels[-1] if s == 6 else channels, channels, 3, stride=2, padding=1)
                for s in range(6, last + 1)
            }
        )
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, stages: list[Tensor], levels: range | None = None) -> list[Tensor]:
        first, last = (self.first, self.last) if levels is None else (levels[0], levels[-1])
        merged = self.lateral["c5"](stages[-1])
        outputs = [self._output("p5", merged)]
        for s in range(4, first - 1, -1):
            lateral = self.lateral[f"c{s}"](stages[s - 2])
            merged = upsample_nearest2x(merged, add=lateral, backend=self.backend)
            outputs.insert(0, self._output(f"p{s}", merged))
        x = stages[-1]
        for s in range(6, last + 1):
            conv = self.extra[f"p{s}"]
            assert isinstance(conv, nn.Conv2d)
            x = halve(conv, x)
            outputs.append(x[..., :: self.output_step, :: self.output_step])
        return outputs

    def _output(self, level: str, merged: Tensor) -> Tensor:
        conv = self.output[level]
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(merged, conv.weight, conv.bias, stride=self.output_step, padding=1)


def halve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of stride 2 and padding 1, which sees a map of one cell by its middle tap alone.

    There the other taps are left out, since oneDNN does not write their gradients in bfloat16 (torch 2.11, CPU): what
    stood in that memory would reach the weights.
    """
    if x.shape[-2:] == (1, 1):
        return F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias)
    return conv(x)

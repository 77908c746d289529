"""ResNet's stages C2-C5 with torchvision's modules, parameter names and initialisation."""

from collections.abc import Callable

import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from zoominnet.models.interfaces import Backbone


def narrow_resnet(blocks: int, width: int) -> ResNet:
    """A torchvision ResNet of `blocks` basic blocks a stage, with `width` channels in the first instead of 64."""
    resnet = ResNet(BasicBlock, [blocks] * 4)
    resnet.conv1, resnet.bn1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)
    resnet.inplanes = width
    for stage in range(4):
        planes, stride = width << stage, 1 if stage == 0 else 2
        setattr(resnet, f"layer{stage + 1}", resnet._make_layer(BasicBlock, planes, blocks, stride))
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return resnet


RESNETS: dict[str, Callable[..., ResNet]] = {
    **{name: getattr(torchvision.models, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    "resnet10-quarter": lambda weights: narrow_resnet(1, 16),
    "resnet18-quarter": lambda weights: narrow_resnet(2, 16),
}
WITH_BOTTLENECKS = ("resnet50", "resnet101")
"""Of them those whose blocks have 1x1 convolutions."""


class ResNetStages(Backbone):
    """A torchvision ResNet without its classifier, returning the outputs of its four stages.

    Args:
        name: one of `RESNETS`.
        stride_in_1x1: put the stride of a bottleneck into its first 1x1 convolution, as in the original (Caffe)
            ResNet, instead of the 3x3 one as torchvision does. Only weights trained so need it.
        frozen_stages: 0 trains everything; n >= 1 freezes the stem and the first n stages (parameters and BatchNorm
            statistics), as mmdetection's option of that name.
        norm_eval: keep every BatchNorm in evaluation mode also while training (statistics fixed, affine parameters
            still trained), as mmdetection's option of that name.
    """

    def __init__(
        self, name: str, *, stride_in_1x1: bool = False, frozen_stages: int = 0, norm_eval: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages: {frozen_stages} is not in 0..4")
        resnet = RESNETS[name](weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        expansion = type(resnet.layer1[0]).expansion
        first = resnet.conv1.out_channels * expansion
        self.channels = (first, 2 * first, 4 * first, 8 * first)
        if stride_in_1x1:
            if expansion == 1:
                raise ValueError(f"stride_in_1x1: {name} has no bottleneck blocks, so no 1x1 convolution to stride")
            for layer in (self.layer2, self.layer3, self.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        return [self.conv1, self.bn1, *stages[: self.frozen_stages]] if self.frozen_stages else []

    def train(self, mode: bool = True) -> "ResNetStages":
        super().train(mode)
        for root in [self] if self.norm_eval else self._frozen():
            for module in root.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # SyncBatchNorm too
                    module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs

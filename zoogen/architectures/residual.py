"""The modules of the residual networks (He et al. 2016, arXiv:1512.03385).

Parameters are named, and strides placed, as in torchvision (version 1.5: a bottleneck strides in its 3x3 convolution),
so state dicts can be exchanged. Written out here, because a published name must not change with a library's release.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class _Block(nn.Module):
    """Convolutions and batch norms beside a shortcut: relu(convolutions(x) + shortcut(x))."""

    expansion: ClassVar[int]
    downsample: nn.Module | None

    def _shortcut(self, n_in: int, n_out: int, stride: int) -> nn.Module | None:
        if stride == 1 and n_in == n_out:
            return None
        return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def _add(self, out: Tensor, x: Tensor) -> Tensor:
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with the stride: (B, n_in, H, W) -> (B, n, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, n_in: int, n: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n)
        self.downsample = self._shortcut(n_in, n, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        return self._add(self.bn2(self.conv2(out)), x)


class Bottleneck(_Block):
    """Convolutions 1x1, 3x3 with the stride, 1x1: (B, n_in, H, W) -> (B, 4 n, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, n_in: int, n: int, stride: int) -> None:
        super().__init__()
        n_out = n * self.expansion
        self.conv1 = nn.Conv2d(n_in, n, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = nn.Conv2d(n, n, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n)
        self.conv3 = nn.Conv2d(n, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = self._shortcut(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return self._add(self.bn3(self.conv3(out)), x)


class ResNet(nn.Module):
    """Stem, four stages of blocks, mean over the pixels, linear layer: (B, channels, H, W) -> (B, outputs)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        width: int,
        channels: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        w, e = width, block.expansion
        self.layer1 = _stage(block, blocks[0], w, w, stride=1)
        self.layer2 = _stage(block, blocks[1], w * e, 2 * w, stride=2)
        self.layer3 = _stage(block, blocks[2], 2 * w * e, 4 * w, stride=2)
        self.layer4 = _stage(block, blocks[3], 4 * w * e, 8 * w, stride=2)
        self.fc = nn.Linear(8 * w * e, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def _stage(block: type[BasicBlock] | type[Bottleneck], count: int, n_in: int, n: int, stride: int) -> nn.Sequential:
    first = block(n_in, n, stride)
    return nn.Sequential(first, *(block(n * block.expansion, n, stride=1) for _ in range(count - 1)))

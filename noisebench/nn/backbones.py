"""Backbones: images [B, C, H, W] -> features [B, D], without a final linear layer.

`BACKBONE_NAMES` is a literal, so that `registry.backbone_names` reads it from the source without importing torch.
Weights are drawn from torch's global generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisebench.errors import UserError, unknown

BACKBONE_NAMES = ("preact_resnet18", "small_cnn", "wrn_28_10")
TIMM = "timm:"
"""Prefix of a name that means timm's model of that name."""

ImageShape = tuple[int, int, int]


class Backbone(nn.Module):
    """A network that maps images [B, C, H, W] to features [B, feature_dim]."""

    feature_dim: int


class SmallCNN(Backbone):
    """Blocks of 3x3 convolution, BatchNorm and ReLU, halved between blocks, then averaged: for 8x8 to 32x32.

    The default is the cheapest that reaches 98% on digits and still learns 40% wrong labels by heart.

    Args:
        image_shape: (C, H, W).
        widths: channels of each block; the last is `feature_dim`.
        stem_stride: of the first convolution; 2 costs a quarter, for 28x28 images and larger on a CPU.

    Raises:
        UserError: no widths, a stride below 1, or images too small to be halved between the blocks.
    """

    def __init__(self, image_shape: ImageShape, widths: Sequence[int] = (16, 32, 64), stem_stride: int = 1) -> None:
        super().__init__()
        channels, height, width = image_shape
        if not widths or min(widths) < 1:
            raise UserError(f"small_cnn: widths {list(widths)}; give the channels of each block, e.g. [16, 32, 64]")
        if stem_stride < 1:
            raise UserError(f"small_cnn: stem_stride {stem_stride}; give 1 or more")
        smallest = stem_stride * 2 ** (len(widths) - 1)
        if min(height, width) < smallest:
            raise UserError(
                f"small_cnn: images are {height}x{width}; {len(widths)} blocks need {smallest} pixels or more"
            )
        layers: list[nn.Module] = []
        for block, out in enumerate(widths):
            if block:
                layers.append(nn.AvgPool2d(2))  # on a CPU much faster than the maximum, and as accurate
            stride = 1 if block else stem_stride
            layers += [_conv3x3(channels, out, stride), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.feature_dim = channels
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D]."""
        return _pooled(self.layers(x))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU; He et al., "Identity Mappings" (ECCV 2016), Fig. 1b.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, as in the authors' code.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv3x3(channels, out, stride)
        self.norm2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(out, out)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out, H / stride, W / stride]."""
        active = torch.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(active)))))
        return out + kept


class PreActResNet18(Backbone):
    """PreAct-ResNet-18 with a 3x3 stem of stride 1; He et al., "Identity Mappings" (ECCV 2016); `feature_dim` 512.

    Papers on label noise differ in it. Arazo et al. (ICML 2019) and what is built on their code (DivideMix)
    have a BatchNorm and ReLU after the stem, none before the pooling, and torch's initial weights:
    ``stem_bn=True, final_bn=False, he_init=False``.

    Args:
        image_shape: (C, H, W).
        stem_bn: BatchNorm and ReLU after the first convolution.
        final_bn: BatchNorm and ReLU before the pooling, as in the paper.
        he_init: convolutions from N(0, 2 / fan-out), as in He's code; else torch's default.
    """

    def __init__(
        self, image_shape: ImageShape, stem_bn: bool = False, final_bn: bool = True, he_init: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv3x3(image_shape[0], 64)]
        if stem_bn:
            layers += [nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        layers += _groups(64, (64, 128, 256, 512), blocks=2)
        if final_bn:
            layers += [nn.BatchNorm2d(512), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.feature_dim = 512
        if he_init:
            _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 512]."""
        return _pooled(self.layers(x))


class WideResNet(Backbone):
    """WRN-28-10; Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016); `feature_dim` 64 x width.

    Args:
        image_shape: (C, H, W).
        depth: 6 n + 4 convolutions on the longest path.
        width: factor on the channels 16, 32, 64.
        dropout: share dropped between the two convolutions of a block.

    Raises:
        UserError: a depth that is not 6 n + 4, a width below 1, or a dropout outside [0, 1).
    """

    def __init__(self, image_shape: ImageShape, depth: int = 28, width: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"wrn_28_10: depth {depth}; give 6 n + 4, e.g. 16, 28 or 40")
        if width < 1:
            raise UserError(f"wrn_28_10: width {width}; give a factor of 1 or more")
        if not 0 <= dropout < 1:
            raise UserError(f"wrn_28_10: dropout {dropout}; give a share in [0, 1)")
        widths = (16 * width, 32 * width, 64 * width)
        self.layers = nn.Sequential(
            _conv3x3(image_shape[0], 16),
            *_groups(16, widths, blocks=(depth - 4) // 6, dropout=dropout),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(inplace=True),
        )
        self.feature_dim = widths[-1]
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 64 x width]."""
        return _pooled(self.layers(x))


class TimmBackbone(Backbone):
    """Any model of timm without its classifier, untrained; what its pooling gives is the features.

    Args:
        image_shape: (C, H, W); a model of one fixed size needs the option ``img_size`` too.
        model: timm's name of it.
        options: for `timm.create_model`.

    Raises:
        UserError: no such model (with the nearest names), an option it refuses, or a model that cannot take such images
            or gives no vector.
    """

    def __init__(self, image_shape: ImageShape, model: str, **options: Any) -> None:
        super().__init__()
        import timm  # a second to import, and seldom needed

        if not timm.is_model(model):
            raise unknown("backbone", TIMM + model, [TIMM + name for name in timm.list_models()])
        for option in ("pretrained", "num_classes", "in_chans"):
            if option in options:
                raise UserError(f"backbone '{TIMM}{model}': option '{option}' is set by noisebench; leave it out")
        try:
            self.net = timm.create_model(model, pretrained=False, num_classes=0, in_chans=image_shape[0], **options)
            # timm's num_features is not what every model gives (MobileNetV3 has 960, gives 1280): ask the model itself.
            features = _of_zeros(self.net, image_shape)
        except Exception as error:  # timm's models raise what they please
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"backbone '{TIMM}{model}' on images {list(image_shape)}: {reason}") from error
        if features.ndim != 2:
            raise UserError(f"backbone '{TIMM}{model}' gives {list(features.shape)}; a backbone gives features [B, D]")
        self.feature_dim = features.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D]."""
        features: Tensor = self.net(x)
        return features


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "preact_resnet18": PreActResNet18,
    "small_cnn": SmallCNN,
    "wrn_28_10": WideResNet,
}


def backbone_names() -> tuple[str, ...]:
    """The names of the backbones here; "timm:NAME" stands for any model of timm beside them."""
    return BACKBONE_NAMES


def make_backbone(name: str, image_shape: ImageShape, **options: Any) -> Backbone:
    """A new backbone, float32, on the CPU; its weights come from torch's global generator.

    Args:
        name: one of `BACKBONE_NAMES`, or "timm:NAME".
        image_shape: (C, H, W) of the images.
        options: the class's own, e.g. ``final_bn=False``.

    Returns:
        A module that maps float32 [B, C, H, W] to [B, D], with D as its `feature_dim`.

    Raises:
        UserError: an unknown name or option (with the nearest names), or an option's value that does not fit.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise UserError(f"image_shape {tuple(image_shape)}; give (channels, height, width), each 1 or more")
    if name.startswith(TIMM):
        return TimmBackbone(image_shape, name.removeprefix(TIMM), **options)
    if name not in BACKBONES:
        raise unknown("backbone", name, [*BACKBONES, f"{TIMM}NAME"])
    known = [option for option in inspect.signature(BACKBONES[name]).parameters if option != "image_shape"]
    for option in options:
        if option not in known:
            raise unknown(f"backbone '{name}': option", option, known)
    return BACKBONES[name](image_shape, **options)


def _conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)


def _groups(channels: int, widths: Sequence[int], blocks: int, dropout: float = 0.0) -> list[nn.Module]:
    """A group of `blocks` for each of `widths`; every group but the first halves the image."""
    made: list[nn.Module] = []
    for group, out in enumerate(widths):
        for block in range(blocks):
            made.append(PreActBlock(channels, out, 2 if group and not block else 1, dropout))
            channels = out
    return made


def _pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


@torch.no_grad()
def _of_zeros(net: nn.Module, image_shape: ImageShape) -> Tensor:
    """What `net` gives for one black image; in eval mode, which neither draws nor updates anything."""
    net.eval()
    out: Tensor = net(torch.zeros(1, *image_shape))
    net.train()
    return out


def _he_init(module: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers" (ICCV 2015): N(0, 2 / fan-out) for every convolution."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

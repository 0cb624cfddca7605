"""The backbones: shapes, parameter counts by hand, and refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from noisebench.errors import UserError
from noisebench.nn import make_backbone
from noisebench.nn.backbones import BACKBONE_NAMES, BACKBONES, PreActBlock, backbone_names

# Small forms of each, so that every shape is quick on a CPU.
QUICK: list[tuple[str, dict[str, Any]]] = [
    ("small_cnn", {}),
    ("preact_resnet18", {"final_bn": True}),
    ("preact_resnet18", {"final_bn": False}),
    ("preact_resnet18", {"stem_bn": True, "final_bn": False, "he_init": False}),
    ("wrn_28_10", {"depth": 10, "width": 1, "dropout": 0.3}),
    ("timm:resnet18", {}),
]
SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def with_head(name: str, classes: int = 10, **options: Any) -> int:
    """Parameters of the backbone for 32x32 colour images and its linear head."""
    backbone = make_backbone(name, (3, 32, 32), **options)
    return count(backbone) + (backbone.feature_dim + 1) * classes


def block_count(channels: int, out: int, projects: bool) -> int:
    """Two 3x3 convolutions, two BatchNorms of two vectors each, and the 1x1 shortcut where the shape changes."""
    return 9 * channels * out + 9 * out * out + 2 * channels + 2 * out + (channels * out if projects else 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "options"), QUICK)
def test_features_are_vectors_of_feature_dim_with_gradients(
    name: str, options: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    backbone = make_backbone(name, shape, **options)
    features = backbone(torch.randn(2, *shape))
    assert features.shape == (2, backbone.feature_dim)
    assert features.dtype == torch.float32
    assert bool(features.isfinite().all())
    features.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_in_eval_mode_a_sample_does_not_see_its_batch(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name, (3, 16, 16), **options)
    x = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        for _ in range(20):  # BatchNorm's statistics must be of this data, or deep features are far from 1
            backbone(x)
        backbone.eval()
        whole, parts = backbone(x), torch.cat([backbone(part) for part in x.split([1, 3, 2])])
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_weights_come_from_the_global_generator_alone(name: str, options: dict[str, Any]) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().ravel() for p in make_backbone(name, (1, 8, 8), **options).parameters()])

    first, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_preact_resnet18_has_the_parameters_of_the_hand_count() -> None:
    stem, head = 27 * 64, 513 * 10
    groups = sum(
        block_count(channels, out, projects=channels != out) + block_count(out, out, projects=False)
        for channels, out in ((64, 64), (64, 128), (128, 256), (256, 512))
    )
    assert stem + groups + head == 11_171_146  # without a final BatchNorm: the number that is often quoted
    assert with_head("preact_resnet18", final_bn=False) == 11_171_146
    assert with_head("preact_resnet18", final_bn=True) == 11_171_146 + 2 * 512
    assert with_head("preact_resnet18", stem_bn=True, final_bn=False) == 11_171_146 + 2 * 64  # Arazo et al.


def test_wrn_28_10_has_the_parameters_of_the_paper() -> None:
    groups = sum(
        block_count(channels, out, projects=True) + 3 * block_count(out, out, projects=False)
        for channels, out in ((16, 160), (160, 320), (320, 640))
    )
    total = 27 * 16 + groups + 2 * 640 + 641 * 10
    assert with_head("wrn_28_10") == total
    assert round(total / 1e6, 1) == 36.5
    assert make_backbone("wrn_28_10", (3, 32, 32)).feature_dim == 640


def test_small_cnn_has_the_parameters_of_the_hand_count() -> None:
    backbone = make_backbone("small_cnn", (1, 8, 8), widths=[8, 12])
    assert backbone.feature_dim == 12
    assert count(backbone) == 9 * 1 * 8 + 2 * 8 + 9 * 8 * 12 + 2 * 12


def test_final_bn_makes_features_nonnegative_and_its_absence_does_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    assert bool((make_backbone("preact_resnet18", (1, 8, 8), final_bn=True)(x) >= 0).all())
    assert bool((make_backbone("preact_resnet18", (1, 8, 8), final_bn=False)(x) < 0).any())


def test_a_block_adds_its_input_where_the_shape_stays() -> None:
    block = PreActBlock(4, 4, stride=1)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert PreActBlock(4, 8, stride=2)(x).shape == (2, 8, 3, 3)


def test_he_init_has_the_variance_of_the_paper() -> None:
    torch.manual_seed(0)
    deepest = max(make_backbone("preact_resnet18", (3, 32, 32)).parameters(), key=torch.numel)
    assert deepest.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_dropout_of_a_wide_resnet_acts_in_training_only() -> None:
    backbone = make_backbone("wrn_28_10", (1, 8, 8), depth=10, width=1, dropout=0.5)
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(backbone(x), backbone(x))
    backbone.eval()
    assert torch.equal(backbone(x), backbone(x))


def test_small_cnn_learns_wrong_labels_by_heart() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    backbone = make_backbone("small_cnn", (1, 8, 8))
    net = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() == 1


def test_timm_feature_dim_is_what_the_model_gives() -> None:
    # timm says num_features = 576 of this model, but its pooled features pass one more layer.
    backbone = make_backbone("timm:mobilenetv3_small_050", (3, 32, 32))
    assert backbone.feature_dim == 1024
    assert backbone.training


def test_names_are_one_list_and_need_no_torch() -> None:
    assert backbone_names() == BACKBONE_NAMES == tuple(sorted(BACKBONES))
    code = (
        "import sys; from noisebench.registry import backbone_names; print(backbone_names()); "
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(BACKBONE_NAMES)


@pytest.mark.parametrize(
    ("name", "shape", "options", "said"),
    [
        ("preact_resnet", (3, 32, 32), {}, "backbone 'preact_resnet' is unknown; did you mean preact_resnet18"),
        ("timm:resnet18x", (3, 32, 32), {}, "backbone 'timm:resnet18x' is unknown; did you mean timm:resnet18"),
        ("timm:resnet18", (3, 32, 32), {"pretrained": True}, "'pretrained' is set by noisebench"),
        ("timm:resnet18", (3, 32, 32), {"colour": 1}, "TypeError: .*colour"),
        ("timm:vit_tiny_patch16_224", (3, 32, 32), {}, r"on images \[3, 32, 32\]: .*224"),
        ("preact_resnet18", (3, 32, 32), {"final_bm": True}, "option 'final_bm' is unknown; did you mean final_bn"),
        ("small_cnn", (1, 3, 8), {}, "images are 3x8; 3 blocks need 4 pixels or more"),
        ("small_cnn", (1, 8, 8), {"widths": []}, "give the channels of each block"),
        ("wrn_28_10", (3, 32, 32), {"depth": 27}, "depth 27; give 6 n"),
        ("wrn_28_10", (3, 32, 32), {"width": 0}, "width 0"),
        ("wrn_28_10", (3, 32, 32), {"dropout": 1.0}, "dropout 1.0"),
        ("small_cnn", (8, 8), {}, "image_shape"),
        ("small_cnn", (0, 8, 8), {}, "image_shape"),
    ],
)
def test_mistakes_are_one_clear_line(name: str, shape: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make_backbone(name, shape, **options)
    assert "\n" not in str(caught.value)

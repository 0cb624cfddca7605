"""The heteroscedastic head as a layer, in other people's models, and its methods."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torch.distributed
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from noisebench.assembly import make_hparams, method_class
from noisebench.errors import UserError
from noisebench.method import Task
from noisebench.nn import HeteroscedasticHead, mc_log_probs, replace_head
from noisebench.nn.backbones import make_backbone

D, K, R = 12, 7, 3


def head(**options: Any) -> HeteroscedasticHead:
    torch.manual_seed(0)
    return HeteroscedasticHead(D, K, **{"rank": R, "train_samples": 16, "eval_samples": 64} | options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -------------------------------------------------------------------------------------------- parameters


def test_full_adds_32_784_000_parameters_at_the_papers_size() -> None:
    """Appendix E: 92,969,128 with the head against 60,185,128 without."""
    with torch.device("meta"):
        added = count(HeteroscedasticHead(2048, 1000, covariance="full", rank=15)) - count(nn.Linear(2048, 1000))
    assert added == 32_784_000 == 92_969_128 - 60_185_128


def test_parameter_efficient_head_at_the_size_of_imagenet_21k() -> None:
    """v and V take D K + K + K R parameters: 45.9 million, against the 2.2 billion of V(x); the paper says 44.8."""
    with torch.device("meta"):
        made = HeteroscedasticHead(2048, 21_843, covariance="pe", rank=50)
    assert made.gain is not None
    assert made.shared_factors is not None
    assert count(made.gain) + made.shared_factors.numel() == 2049 * 21_843 + 21_843 * 50


def test_het_xl_does_not_grow_with_the_classes_but_in_its_linear_layer() -> None:
    def added(classes: int) -> int:
        made = HeteroscedasticHead(64, classes, covariance="pe", rank=8, noise_on="features")
        return count(made) - count(nn.Linear(64, classes))

    assert added(10) == added(5000) == 2 * (64 * 64 + 64) + 64 * 8


# --------------------------------------------------------------------------------------------- the layer


@pytest.mark.parametrize("noise_on", ["logits", "features"])
@pytest.mark.parametrize("covariance", ["diag", "full", "pe"])
def test_samples_have_the_covariance_that_it_tells(covariance: Any, noise_on: Any) -> None:
    """Algorithm 1 of the paper, written out with the head's own layers, gives samples of covariance(features)."""
    made = head(covariance=covariance, noise_on=noise_on).double()
    x = torch.randn(1, D, dtype=torch.float64)
    scale = F.softplus(made.scale(x)) + 1e-3
    noise = scale * torch.randn(400_000, scale.shape[1], dtype=torch.float64)
    z = torch.randn(400_000, R, dtype=torch.float64)
    if made.factors is not None:
        noise = noise + z @ made.factors(x).view(-1, R).T
    if made.gain is not None and made.shared_factors is not None:
        noise = noise + made.gain(x) * (z @ made.shared_factors.T)
    if noise_on == "features":
        noise = noise @ made.loc.weight.T
    told = made.covariance(x)[0].detach()
    assert told.shape == (K, K)
    assert float((torch.cov(noise.detach().T) - told).norm() / told.norm()) < 0.02
    assert float(torch.linalg.eigvalsh(told).min()) > -1e-12
    assert made(x).shape == (1, K)


def test_output_is_mc_log_probs_of_its_layers() -> None:
    made = head(covariance="full", temperature=0.8).eval()
    x = torch.randn(5, D)
    torch.manual_seed(4)
    found = made(x)
    torch.manual_seed(4)
    assert made.factors is not None
    expected = mc_log_probs(
        made.loc(x),
        F.softplus(made.scale(x)) + 1e-3,
        made.factors(x).view(5, K, R),
        temperature=0.8,
        num_samples=64,
    )
    assert torch.equal(found, expected)


def test_cross_entropy_needs_no_change() -> None:
    found, y = head()(torch.randn(5, D)), torch.tensor([0, 1, 2, 3, 4])
    assert torch.allclose(F.cross_entropy(found, y), F.nll_loss(found, y), atol=1e-6)


def test_train_and_eval_draw_their_own_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(*args: Any, **options: Any) -> Tensor:
        seen.append(options["num_samples"])
        return mc_log_probs(*args, **options)

    monkeypatch.setattr("noisebench.nn.heteroscedastic.mc_log_probs", spy)
    made, x = head(train_samples=3, eval_samples=5), torch.randn(2, D)
    made(x)
    made.eval()(x)
    assert seen == [3, 5]


def test_learned_temperature_starts_where_told_moves_and_stays_inside_its_bounds() -> None:
    made = head(temperature=0.9, learn_temperature=True)
    assert isinstance(made.temperature, Tensor)
    assert float(made.temperature.detach()) == pytest.approx(0.9)
    made(torch.randn(4, D))[:, 0].sum().backward()
    assert made.raw_temperature is not None
    assert made.raw_temperature.grad is not None
    assert float(made.raw_temperature.grad) != 0
    for extreme, bound in ((-100.0, 0.05), (100.0, 5.0)):
        with torch.no_grad():
            made.raw_temperature.fill_(extreme)
        assert float(made.temperature.detach()) == pytest.approx(bound)
    assert "raw_temperature" in made.state_dict()


def test_sigmoid_link_gives_logits_that_no_sample_moves() -> None:
    made, x = head(link="sigmoid", temperature=0.15), torch.randn(3, D)
    assert torch.equal(made(x), made(x))
    F.binary_cross_entropy_with_logits(made(x), torch.ones(3, K)).backward()
    assert all(p.grad is not None for p in made.parameters())


def test_taylor_is_close_to_the_samples_where_noise_is_small() -> None:
    exact, x = head(eval_samples=100_000, temperature=4.0).eval(), torch.randn(3, D)
    closed = head(taylor=True, temperature=4.0).eval()
    closed.load_state_dict(exact.state_dict())
    assert float((closed(x) - exact(x)).detach().abs().max()) < 0.01
    assert torch.equal(closed(x), closed(x))


@pytest.mark.parametrize("covariance", ["diag", "full", "pe"])
def test_every_parameter_learns(covariance: Any) -> None:
    """A head on fixed features fits labels that depend on them, and all its parts have moved."""
    made = head(covariance=covariance)
    before = copy.deepcopy(made.state_dict())
    x = torch.randn(64, D)
    y = x[:, :K].argmax(1)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(made(x), y).backward()
        optimizer.step()
    assert float((made.eval()(x).argmax(1) == y).float().mean()) > 0.9
    assert all(not torch.equal(before[k], v) for k, v in made.state_dict().items())


def test_rank_is_15_or_as_many_as_there_are_classes() -> None:
    assert HeteroscedasticHead(4, 10).rank == 10
    assert HeteroscedasticHead(4, 100).rank == 15


@pytest.mark.parametrize(
    "options", [{"sampling": "sobol"}, {"sampling": "antithetic"}, {"per_example": True}, {"link": "sigmoid"}]
)
def test_options_reach_the_integral(options: dict[str, Any]) -> None:
    x = torch.randn(3, D)
    found = []
    for made in (head(**options), head()):
        torch.manual_seed(9)
        found.append(made(x))
    made = head()
    torch.manual_seed(9)
    assert made.factors is not None
    scale, factors = F.softplus(made.scale(x)) + 1e-3, made.factors(x).view(3, K, R)
    expected = mc_log_probs(made.loc(x), scale, factors, temperature=1.0, num_samples=16, **options)
    assert torch.equal(found[0], expected)
    assert not torch.equal(found[0], found[1])


def test_an_empty_batch_gives_an_empty_result() -> None:
    for per_example in (False, True):
        found = head(per_example=per_example)(torch.zeros(0, D))
        assert found.shape == (0, K)
        found.sum().backward()


def test_exports_with_a_batch_of_any_size() -> None:
    made = head(eval_samples=4).eval()
    program = torch.export.export(made, (torch.randn(6, D),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program.module()(torch.randn(3, D)).shape == (3, K)


def test_leading_dimensions_are_kept_as_a_linear_layer_keeps_them() -> None:
    assert head()(torch.randn(2, 3, D)).shape == (2, 3, K)
    assert head()(torch.randn(D)).shape == (K,)


def test_float32_in_a_bfloat16_region_and_in_a_bfloat16_model() -> None:
    x = torch.randn(2, D)
    expected = head()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head()(x), expected)
    half, x = head().bfloat16(), x.bfloat16()
    wide = copy.deepcopy(half).float()
    found = []
    for made, given in ((half, x), (wide, x.float())):
        torch.manual_seed(1)
        found.append(made(given))
    assert torch.equal(*found)


# -------------------------------------------------------------------------------------- other people's models


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small", "vit_b_32", "densenet121"])
def test_replaces_the_head_of_torchvision_models(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10)
        made = replace_head(model, train_samples=2, rank=4)
    heads = [part for part in model.modules() if isinstance(part, HeteroscedasticHead)]
    assert heads == [made]
    assert made.num_classes == 10


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_replaces_the_head_of_timm_models(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    made = replace_head(model, num_classes=6, train_samples=2, eval_samples=2, rank=4)
    assert [p for p in model.modules() if isinstance(p, HeteroscedasticHead)] == [made]
    size = model.default_cfg["input_size"]
    found = model.eval()(torch.randn(2, *size))
    assert found.shape == (2, 6)
    assert torch.allclose(found.exp().sum(1), torch.ones(2), atol=1e-4)


def test_the_mean_starts_from_the_old_weights() -> None:
    model = torchvision.models.resnet18(num_classes=9).double().eval()
    old = copy.deepcopy(model.fc)
    made = replace_head(model, rank=2)
    assert torch.equal(made.loc.weight, old.weight)
    assert torch.equal(made.loc.bias, old.bias)
    assert made.scale.weight.dtype == torch.float64
    assert not made.training


def test_models_whose_last_layer_is_not_a_linear_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"model: the last layer of SqueezeNet \('classifier.1'\) is no nn\.Linear"):
        replace_head(torchvision.models.squeezenet1_0())
    with pytest.raises(UserError, match=r"model: .* has 2 heads \(head, head_dist\); name one with layer="):
        replace_head(timm.create_model("deit_tiny_distilled_patch16_224"))
    with pytest.raises(UserError, match=r"is no nn\.Linear inside it"):
        replace_head(nn.Linear(4, 5))
    shared = nn.Linear(4, 4)
    with pytest.raises(UserError, match="layer '0' of Sequential stands in several places"):
        replace_head(nn.Sequential(shared, nn.ReLU(), shared))


def test_a_layer_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 1))
    with pytest.raises(UserError, match=r"\('2'\) is no nn\.Linear"):
        replace_head(model)
    assert replace_head(model, layer="0", rank=2) is model[0]


def test_under_distributed_data_parallel() -> None:
    """One process here: DDP finds every parameter used, and gives the gradients of the bare module."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        bare, x, y = head(covariance="pe"), torch.randn(4, D), torch.tensor([0, 1, 2, 3])
        wrapped = DistributedDataParallel(copy.deepcopy(bare))
        gradients = []
        for model in (bare, wrapped):
            torch.manual_seed(1)
            F.cross_entropy(model(x), y).backward()
            gradients.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_inside_a_compiled_model() -> None:
    model = nn.Sequential(nn.Linear(4, D), head(covariance="full", train_samples=512))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    F.cross_entropy(compiled(torch.randn(3, 4)), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0; give a finite number above 0"),
        ({"temperature": -1.5}, "temperature: -1.5; give a finite number above 0"),
        ({"rank": 0}, "rank: 0; give 1 to 7"),
        ({"rank": 8}, "rank: 8; give 1 to 7, num_classes"),
        ({"rank": 13, "noise_on": "features"}, "rank: 13; give 1 to 12"),
        ({"train_samples": 0}, "train_samples: 0; give an int of 1 or more"),
        ({"eval_samples": -1}, "eval_samples: -1; give an int of 1 or more"),
        ({"covariance": "lowrank"}, "covariance: 'lowrank'; give one of diag, full, pe"),
        ({"link": "probit"}, "link: 'probit'; give one of softmax, sigmoid"),
        ({"sampling": "antithetic", "train_samples": 5}, "train_samples: 5; antithetic draws come in pairs"),
        ({"temperature": 6.0, "learn_temperature": True}, "give one inside temperature_bounds, 0.05 to 5"),
        ({"temperature_bounds": (1.0, 1.0)}, "temperature_bounds: (1.0, 1.0); give (low, high) with 0 < low < high"),
        ({"temperature": "1"}, "temperature: '1'; give a number above 0"),
        ({"sampling": "halton", "link": "sigmoid"}, "sampling: 'halton'; give one of plain, antithetic, sobol"),
        ({"backend": "cuda"}, "backend: 'cuda'; give one of auto, eager, compiled, triton"),
        ({"taylor": True, "link": "sigmoid"}, "taylor: needs noise_on 'logits' and link 'softmax'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        head(**options)
    assert message in str(raised.value)


def test_bad_features_are_named() -> None:
    x = torch.zeros(4, D)
    x[2, 5] = math.nan
    with pytest.raises(UserError, match=r"features: nan at \[2, 5\]; give finite values"):
        head()(x)
    with pytest.raises(UserError, match=r"features: shape \[4, 3\]; give \[batch, 12\]"):
        head()(torch.zeros(4, 3))


# -------------------------------------------------------------------------------------------------- methods


def built(name: str, num_classes: int = 10, **settings: Any) -> Any:
    cls = method_class(name)
    shape = (1, 8, 8)
    method = cls(make_hparams(cls, settings, name))
    torch.manual_seed(0)
    backbone = make_backbone("small_cnn", shape)
    method.build(Task(num_classes, 100, shape, backbone.feature_dim, lambda: make_backbone("small_cnn", shape)))
    return method


def test_equal_parameters_has_as_many_as_het_full() -> None:
    """Within half a hidden unit, and within 1% of the paper's 11,500 units for ImageNet."""
    full, control = count(built("het_full")), count(built("ce_equal_params"))
    assert abs(full - control) <= (64 + 1 + 10) / 2
    from noisebench.methods.cross_entropy import hidden_units

    assert hidden_units(2048, 1000, 15) == pytest.approx(11_500, rel=0.01)


def test_methods_keep_rank_within_the_classes() -> None:
    assert built("het_full", num_classes=4).net[1].rank == 4
    assert built("het_xl", num_classes=4).net[1].rank == 6


@pytest.mark.parametrize("name", ["het_diag", "het_full", "het_pe", "het_xl"])
def test_sigmoid_link_on_one_label_predicts_on_the_simplex(name: str) -> None:
    method = built(name, link="sigmoid", temperature=0.15).eval()
    p = method.predict(torch.randn(3, 1, 8, 8))
    assert torch.allclose(p.sum(1), torch.ones(3), atol=1e-5)
    assert method.covariance(torch.randn(2, 1, 8, 8)).shape == (2, 10, 10)

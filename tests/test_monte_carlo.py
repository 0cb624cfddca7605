"""mc_log_probs against a dense float64 implementation, against brute force, and in the ways it is used."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from noisebench.errors import UserError
from noisebench.nn import mc_log_probs
from noisebench.nn._draws import SOBOL_DIMENSIONS, Draws

B, K, D, R = 5, 7, 6, 3
FORMS = ("diag", "full", "pe", "features")
SAMPLINGS = ("plain", "antithetic", "sobol")


def problem(form: str, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> dict[str, Tensor | None]:
    """Random arguments of every form of noise."""
    torch.manual_seed(1)
    width = D if form == "features" else K
    found: dict[str, Tensor | None] = dict.fromkeys(("loc", "scale", "factors", "gain", "weight", "bias"))
    found |= {"loc": torch.randn(B, width) * spread, "scale": torch.rand(B, width) + 0.1}
    if form == "full":
        found["factors"] = torch.randn(B, K, R)
    if form in ("pe", "features"):
        found |= {"factors": torch.randn(width, R), "gain": torch.randn(B, width)}
    if form == "features":
        found |= {"weight": torch.randn(K, D), "bias": torch.randn(K)}
    return {k: None if v is None else v.to(dtype) for k, v in found.items()}


def transposed(tensor: Tensor) -> Tensor:
    """Equal, and not contiguous; a vector as it is."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def with_gradients(tensors: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    return {k: None if v is None else v.detach().to(dtype).requires_grad_() for k, v in tensors.items()}


def dense(low: Tensor, diagonal: Tensor, temperature: Tensor, **t: Tensor | None) -> Tensor:
    """The same integral with everything in memory: [B, S, K]; low [., S, R] and diagonal [., S, D] are the draws."""
    loc, scale, factors, gain, weight, bias = (t[k] for k in ("loc", "scale", "factors", "gain", "weight", "bias"))
    assert loc is not None
    assert scale is not None
    noise = scale[:, None] * diagonal
    if gain is not None and factors is not None:
        noise = noise + gain[:, None] * (low @ factors.T)
    elif factors is not None:
        noise = noise + torch.einsum("bkr,bsr->bsk", factors, low.expand(len(loc), -1, -1))
    u = loc[:, None] + noise
    if weight is not None and bias is not None:
        u = u @ weight.T + bias
    return torch.logsumexp(torch.log_softmax(u / temperature, -1), 1) - math.log(u.shape[1])


def seed_of(generator_seed: int) -> int:
    return int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(generator_seed)))


def draws_of(tensors: dict[str, Tensor | None], num_samples: int, per_example: bool, sampling: str) -> Draws:
    factors, loc = tensors["factors"], tensors["loc"]
    assert loc is not None
    rank = 0 if factors is None else factors.shape[-1]
    batch = len(loc) if per_example else None
    return Draws(seed_of(3), num_samples, rank, loc.shape[1], batch=batch, sampling=sampling, dtype=loc.dtype)


def errors(
    form: str, dtype: torch.dtype, spread: float = 1.0, num_samples: int = 38, **options: object
) -> dict[str, float]:
    """Relative errors, in tensor norm, of value and gradients against dense float64 fed the same draws."""
    tensors = with_gradients(problem(form, dtype, spread), dtype)
    temperature = torch.tensor(0.7, dtype=dtype, requires_grad=True)
    generator = torch.Generator().manual_seed(3)
    found = mc_log_probs(**tensors, temperature=temperature, num_samples=num_samples, generator=generator, **options)
    upstream = torch.randn(B, K, dtype=dtype)
    upstream[0] = F.one_hot(torch.tensor(2), K)  # as cross-entropy has it
    (found * upstream).sum().backward()

    draws = draws_of(tensors, num_samples, bool(options.get("per_example")), str(options.get("sampling", "plain")))
    wide, wide_temperature = with_gradients(tensors, torch.float64), temperature.detach().double().requires_grad_()
    expected = dense(*(d.double() for d in draws.materialised()), wide_temperature, **wide)
    (expected * upstream.double()).sum().backward()

    def relative(a: Tensor | None, b: Tensor | None) -> float:
        assert a is not None
        assert b is not None
        return float((a.double() - b).norm() / b.norm())

    compared = {k: relative(v.grad, wide[k].grad) for k, v in tensors.items() if v is not None}
    return compared | {
        "value": relative(found, expected),
        "temperature": relative(temperature.grad, wide_temperature.grad),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("per_example", [False, True])
def test_equals_dense_float64_in_value_and_gradient(form: str, sampling: str, per_example: bool) -> None:
    found = errors(form, torch.float64, sampling=sampling, per_example=per_example, backend="eager")
    assert max(found.values()) < 1e-10, found
    found = errors(form, torch.float32, sampling=sampling, per_example=per_example, backend="eager")
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("form", FORMS)
def test_right_where_probabilities_are_below_1e_30(form: str) -> None:
    tensors = problem(form, torch.float64, 100.0)
    value = mc_log_probs(**tensors, temperature=0.7, num_samples=8)
    assert float(value.min()) < math.log(1e-30)
    assert max(errors(form, torch.float64, 100.0).values()) < 1e-10
    # A float32 logit of some 300 is known to 2e-5, and so is every weight that comes from it.
    assert max(v for k, v in errors(form, torch.float32, 100.0).items() if k != "temperature") < 1e-4


def test_log_probability_of_1e_300_in_float32_has_a_gradient() -> None:
    loc = torch.tensor([[0.0, -700.0]], requires_grad=True)
    found = mc_log_probs(loc, torch.full((1, 2), 0.5), temperature=1.0, num_samples=64)
    found[0, 1].backward()
    assert float(found[0, 1].detach()) == pytest.approx(-700, abs=3)
    assert loc.grad is not None
    assert float(loc.grad[0, 1]) == pytest.approx(1, abs=1e-3)


def test_probabilities_of_a_row_sum_to_one() -> None:
    found = mc_log_probs(**problem("full"), temperature=0.2, num_samples=10)
    assert torch.allclose(found.exp().sum(1), torch.ones(B, dtype=found.dtype), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_example", [False, True])
def test_the_chunk_changes_nothing_but_rounding(form: str, per_example: bool) -> None:
    """Draws do not depend on how they are cut; a budget below one row is a row at a time."""
    results = []
    for chunk in (1, 40, 300, None):
        tensors = with_gradients(problem(form), torch.float64)
        generator = torch.Generator().manual_seed(3)
        found = mc_log_probs(
            **tensors, temperature=0.7, num_samples=50, chunk=chunk, generator=generator, per_example=per_example
        )
        found[:, 0].sum().backward()
        results.append(
            torch.cat([found.detach().flatten(), *(v.grad.flatten() for v in tensors.values() if v is not None)])
        )
    for other in results[1:]:
        assert torch.allclose(other, results[0], rtol=1e-11, atol=1e-13)


def test_more_samples_than_a_block_of_draws() -> None:
    assert max(errors("full", torch.float64, num_samples=2 * Draws(0, 9999, R, K).block_size + 6).values()) < 1e-10


def test_the_global_generator_decides_and_the_backward_pass_leaves_it_alone() -> None:
    tensors = problem("full")
    torch.manual_seed(5)
    first = mc_log_probs(**with_gradients(tensors, torch.float64), temperature=1.0, num_samples=8)
    state = torch.get_rng_state()
    first.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    second = mc_log_probs(**tensors, temperature=1.0, num_samples=8)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(first, mc_log_probs(**tensors, temperature=1.0, num_samples=8))


# ---------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_are_standard_normal_and_the_same_again(sampling: str) -> None:
    draws = Draws(11, 4096, 2, 6, sampling=sampling)
    low, diagonal = draws.materialised()
    both = torch.cat([low, diagonal], -1)[0].double()
    assert both.shape == (4096, 8)
    assert torch.equal(low, draws.materialised()[0])
    assert float(both.mean(0).abs().max()) < 4 / 64
    correlations = torch.corrcoef(both.T) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.07
    assert float((both.var(0) - 1).abs().max()) < 0.1


def test_antithetic_draws_come_with_their_negatives() -> None:
    low, diagonal = Draws(2, 40, 2, 3, sampling="antithetic").materialised()
    assert torch.equal(low[0, :20], -low[0, 20:])
    assert torch.equal(diagonal[0, :20], -diagonal[0, 20:])


def test_each_example_has_draws_of_its_own_when_asked() -> None:
    for sampling in SAMPLINGS:
        low, diagonal = Draws(2, 40, 2, 3, batch=4, sampling=sampling).materialised()
        assert low.shape == (4, 40, 2)
        assert diagonal.shape == (4, 40, 3)
        assert len(torch.unique(diagonal[:, 0], dim=0)) == 4


def test_sobol_halves_the_spread_of_log_probabilities() -> None:
    """The bar of scripts/bench_heteroscedastic.py in small: K = 10, S = 1,024."""
    torch.manual_seed(0)
    loc, scale, factors = torch.randn(1, 10), torch.rand(1, 10) + 0.5, torch.randn(1, 10, 3)

    def spread(sampling: str) -> float:
        values = [
            mc_log_probs(loc, scale, factors, temperature=1.0, num_samples=1024, sampling=sampling)[0, 0]
            for _ in range(40)
        ]
        return float(torch.stack(values).std())

    assert 0 < spread("sobol") < spread("plain") / 2  # scrambled, so that there is a spread at all


# ------------------------------------------------------------------------------------- against brute force


def covariance_root(form: str, t: dict[str, Tensor | None]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [B, K] and a square root of the covariance [B, K, .], in numpy."""
    n = {k: None if v is None else v.numpy() for k, v in t.items()}
    root = np.stack([np.diag(row) for row in n["scale"]])
    if form == "full":
        root = np.concatenate([root, n["factors"]], -1)
    if form == "pe":
        root = np.concatenate([root, n["gain"][..., None] * n["factors"]], -1)
    return n["loc"], root


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [0.5, 1.5])
@pytest.mark.parametrize("form", ["diag", "full", "pe"])
def test_expectation_against_brute_force(form: str, temperature: float, link: str) -> None:
    """With 200,000 samples of both; scripts/bench_heteroscedastic.py does it with 4 million."""
    tensors = problem(form)
    mean, root = covariance_root(form, tensors)
    normals = np.random.default_rng(0).standard_normal((200_000, root.shape[-1]))
    found = mc_log_probs(**tensors, temperature=temperature, num_samples=200_000, link=link)
    ours = (found.exp() if link == "softmax" else found.sigmoid()).numpy()
    for b in range(2):
        u = (mean[b] + normals @ root[b].T) / temperature
        p = np.exp(u - u.max(1, keepdims=True)) if link == "softmax" else 1 / (1 + np.exp(-u))
        p = p / p.sum(1, keepdims=True) if link == "softmax" else p
        error = p.std(0) * math.sqrt((2 if link == "softmax" else 1) / len(p))
        assert (np.abs(p.mean(0) - ours[b]) < 4 * error).all()


def test_sigmoid_link_of_noise_on_the_features() -> None:
    t = problem("features")
    found = mc_log_probs(**t, temperature=0.5, num_samples=1, link="sigmoid").sigmoid()
    n = {k: v.numpy() for k, v in t.items() if v is not None}
    root = np.concatenate([np.diag(n["scale"][0]), n["gain"][0][:, None] * n["factors"]], -1)
    normals = np.random.default_rng(0).standard_normal((200_000, root.shape[1]))
    u = ((n["loc"][0] + normals @ root.T) @ n["weight"].T + n["bias"]) / 0.5
    p = 1 / (1 + np.exp(-u))
    assert (np.abs(p.mean(0) - found[0].numpy()) < 4 * p.std(0) / math.sqrt(len(p))).all()


# ------------------------------------------------------------------------------------------ ways to use it


@pytest.mark.parametrize("form", FORMS)
def test_float32_under_autocast_backward_too(form: str) -> None:
    def step() -> list[Tensor]:
        tensors = with_gradients(problem(form, torch.float32), torch.float32)
        torch.manual_seed(0)
        found = mc_log_probs(**tensors, temperature=1.0, num_samples=16)
        found[:, 0].sum().backward()
        return [found.detach(), *(t.grad for t in tensors.values() if t is not None)]

    expected = step()
    with torch.autocast("cpu", torch.bfloat16):
        found = step()
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiled_chunks_equal_eager_ones() -> None:
    """Compiling takes seconds, so one form stands for all; the benchmark compiles the large one."""
    if not any(__import__("shutil").which(name) for name in ("g++", "clang++")):
        pytest.skip("no C++ compiler")
    assert max(errors("full", torch.float64, num_samples=64, backend="compiled", chunk=560).values()) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_the_operators_keep_what_they_promise_to_torch(form: str) -> None:
    """opcheck: strides and shapes of the fake versions, registration; with inputs that are not contiguous."""
    tensors = [None if t is None else transposed(t).requires_grad_() for t in problem(form).values()]
    options = (torch.tensor(5), 8, False, "plain", "eager", 0)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.noisebench.log_probs.default, (*tensors, *options), test_utils=tests)
    values = [None if t is None else t.detach() for t in tensors]
    log_probs, lse = torch.ops.noisebench.log_probs(*values, *options)
    given = (torch.ones_like(log_probs), log_probs, lse, *values, *options)
    torch.library.opcheck(
        torch.ops.noisebench.log_probs_backward.default, given, test_utils=("test_schema", "test_faketensor")
    )


def test_second_derivatives_are_refused_clearly() -> None:
    tensors = with_gradients(problem("diag"), torch.float64)
    found = mc_log_probs(**tensors, temperature=1.0, num_samples=4)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), tensors["loc"], create_graph=True)
    with pytest.raises(NotImplementedError, match="mc_log_probs is differentiable once"):
        gradient.sum().backward()


def test_inside_a_compiled_model_in_one_graph() -> None:
    def loss(loc: Tensor, scale: Tensor, factors: Tensor) -> Tensor:
        return mc_log_probs(loc, scale, factors, temperature=0.7, num_samples=4000).exp()[:, 0].sum()

    t = with_gradients(problem("full"), torch.float64)
    loc, scale, factors = (t[k] for k in ("loc", "scale", "factors"))
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(loc, scale, factors)
    found.backward()
    assert loc is not None
    assert loc.grad is not None
    assert bool(loc.grad.any())
    assert float(found.detach()) == pytest.approx(float(loss(loc, scale, factors).detach()), abs=0.2)


def test_memory_does_not_grow_with_the_samples() -> None:
    """What 100,000 samples add to the peak of one; their draws alone are 82 MB, and dense would be 1.3 GB a tensor."""
    code = """
import resource, torch
from noisebench.nn import mc_log_probs
torch.set_num_threads(1)
t = [torch.randn(16, 200, requires_grad=True), torch.rand(16, 200), torch.randn(16, 200, 5, requires_grad=True)]
peaks = []
for samples in (1_000, 100_000):
    mc_log_probs(*t, temperature=1.0, num_samples=samples, backend="eager").sum().backward()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20


def test_the_backward_pass_keeps_no_column_of_noise_on_features() -> None:
    """Sigmoid link with noise on the features: R columns [B, K] are made again, not kept."""
    tensors = with_gradients(problem("features", torch.float32), torch.float32)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape == (B, K))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mc_log_probs(**tensors, temperature=1.0, num_samples=1, link="sigmoid")
    assert sum(kept) < 2 * R


def test_later_samples_may_exceed_the_first_ones_by_any_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted draws: a class improbable in the first chunk, and nearly certain in a later one."""
    for gap in (50.0, 70.0, 500.0):
        diagonal = torch.zeros(64, 2)
        diagonal[40:, 1] = 2 * gap

        class Planted(Draws):
            def _normals(self, size: int, generator: torch.Generator, planted: Tensor = diagonal) -> Tensor:
                return planted.T

        monkeypatch.setattr("noisebench.nn.monte_carlo.Draws", Planted)
        t = with_gradients({"loc": torch.tensor([[0.0, -gap]]), "scale": torch.ones(1, 2)}, torch.float32)
        found = mc_log_probs(**t, temperature=1.0, num_samples=64, chunk=32)
        assert found.detach().exp()[0].tolist() == pytest.approx([40 / 64, 24 / 64], rel=1e-5)
        found[0, 1].backward()
        assert all(bool(v.grad.isfinite().all()) for v in t.values())


def test_more_classes_than_a_chunk_holds() -> None:
    tensors = [torch.randn(2, 30_000), torch.rand(2, 30_000)]
    found = mc_log_probs(*tensors, temperature=1.0, num_samples=4, chunk=1000)
    assert torch.allclose(found.exp().sum(1), torch.ones(2), atol=1e-4)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loc": torch.zeros(3)}, "loc: shape [3]; give [batch, classes]"),
        ({"scale": torch.zeros(5, 6)}, "scale: shape [5, 6]; loc is [5, 7], so give [5, 7]"),
        ({"factors": torch.zeros(5, 6, 2)}, "factors: shape [5, 6, 2]; loc is [5, 7], so give [5, 7, rank]"),
        ({"factors": torch.zeros(5, 7, 8)}, "factors: rank 8; give 1 to 7"),
        ({"factors": torch.zeros(5, 7, 0)}, "factors: rank 0; give 1 to 7"),
        ({"gain": torch.zeros(5, 7)}, "factors: shape [5, 7, 3]; loc is [5, 7], so give [7, rank]"),
        ({"factors": None, "gain": torch.zeros(5, 7)}, "gain: given without factors"),
        ({"bias": torch.zeros(7)}, "bias: given without weight"),
        ({"weight": torch.zeros(4, 6)}, "weight: shape [4, 6]; loc is [5, 7], so give [classes, 7]"),
        ({"temperature": 0.0}, "temperature: 0; give a finite number above 0"),
        ({"temperature": -1.0}, "temperature: -1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"temperature": torch.tensor(-2.0)}, "temperature: -2"),
        ({"temperature": torch.ones(2)}, "temperature: shape [2]"),
        ({"temperature": None}, "temperature: None; give a number above 0"),
        ({"scale": None}, "scale: NoneType; give a tensor on cpu, where loc is"),
        ({"scale": torch.zeros(5, 7, device="meta")}, "scale: meta; give a tensor on cpu, where loc is"),
        ({"loc": torch.zeros(5, 0)}, "loc: shape [5, 0]; give [batch, classes]"),
        ({"chunk": -5}, "chunk: -5; give an int of 1 or more"),
        ({"num_samples": 0}, "num_samples: 0; give an int of 1 or more"),
        ({"num_samples": 2.5}, "num_samples: 2.5"),
        ({"num_samples": 7, "sampling": "antithetic"}, "num_samples: 7; antithetic draws come in pairs"),
        ({"sampling": "halton"}, "sampling: 'halton'; give 'plain', 'antithetic' or 'sobol'"),
        ({"link": "probit"}, "link: 'probit'; give one of softmax, sigmoid"),
        ({"backend": "cuda"}, "backend: 'cuda'; give one of auto, eager, compiled, triton"),
        ({"backend": "triton"}, "backend: 'triton' needs float32 on a CUDA device"),
    ],
)
def test_bad_input_names_the_argument(change: dict[str, object], message: str) -> None:
    arguments = {**problem("full"), "temperature": 1.0, "num_samples": 4} | change
    with pytest.raises(UserError) as raised:
        mc_log_probs(**arguments)
    assert message in str(raised.value)


def test_sobol_has_no_more_dimensions_than_direction_numbers() -> None:
    assert SOBOL_DIMENSIONS == 21_201
    loc = torch.zeros(1, 21_200)
    factors = torch.zeros(1, 21_200, 2)
    with pytest.raises(UserError, match=r"'sobol' has 21,201 dimensions, and classes \+ rank are 21,202"):
        mc_log_probs(loc, loc, factors, temperature=1.0, num_samples=2, sampling="sobol")

"""The Triton kernels against dense float64 autograd fed by a NumPy Philox: on the GPU, or interpreted without one.

The interpreter must be on before Triton is imported, so these tests then run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: no kernels to test")

from noisebench.nn import _triton as kernels  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HERE = INTERPRETED or DEVICE.type == "cuda"


# ---------------------------------------------------------------- the reference


STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    """Philox-4x32-10 (Salmon et al. 2011) of four words of counter, in 64-bit integers."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    halves = divmod(key % 2**64, 2**32)[::-1]
    for turn in range(10):
        k0, k1 = (np.uint64((half + turn * step) % 2**32) for half, step in zip(halves, STEPS, strict=True))
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ k0,
            second & low,
            (first >> np.uint64(32)) ^ c3 ^ k1,
            first & low,
        )
    return list(np.broadcast_arrays(c0, c1, c2, c3))


def box_muller(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    uniform = first.astype(np.float32) * np.float32(2.0**-32) + np.float32(
        2.0**-33
    )  # rounding to float32 is part of it
    radius = np.sqrt(-2 * np.log(uniform.astype(np.float64)))
    angle = second.astype(np.float64) * (2 * np.pi / 2**32)
    return radius * np.cos(angle), radius * np.sin(angle)


def draws(seed: int, samples: int, columns: int, examples: int, antithetic: bool) -> np.ndarray:
    """float64 [examples, samples, columns]."""
    call = np.arange(-(-samples // 4))
    example, call, column = np.meshgrid(np.arange(examples), call, np.arange(columns), indexing="ij")
    words = philox([column, call, example, np.zeros_like(column)], seed)
    x, y = box_muller(*words[:2])
    four = (x, -x, y, -y) if antithetic else (x, y, *box_muller(*words[2:]))
    return np.stack(four, 2).reshape(examples, -1, columns)[:, :samples]


def dense(loc, scale, factors, gain, noise, grad):
    """log p and the gradients, float64, everything materialised."""
    inputs = [None if x is None else x.double().cpu().requires_grad_() for x in (loc, scale, factors, gain)]
    loc, scale, factors, gain = inputs
    rank = noise.shape[-1] - loc.shape[1]
    z, e = torch.from_numpy(noise).split([rank, loc.shape[1]], -1)
    logits = loc[:, None] + scale[:, None] * e
    if gain is not None:
        logits = logits + gain[:, None] * (z @ factors.T)
    elif factors is not None:
        logits = logits + z @ factors.transpose(1, 2)
    log_probs = logits.log_softmax(-1).logsumexp(1) - np.log(noise.shape[1])
    log_probs.backward(grad.double().cpu())
    return log_probs.detach(), [None if x is None else x.grad for x in inputs]


def error(x: torch.Tensor, right: torch.Tensor) -> float:
    assert x.shape == right.shape
    return float((x.double().cpu() - right).norm() / right.norm())


def problem(kind: str, batch: int, classes: int, rank: int):
    generator = torch.Generator().manual_seed(batch + classes + rank)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)  # noqa: E731
    factors = {"diag": None, "full": draw(batch, classes, rank), "pe": draw(classes, rank)}[kind]
    return draw(batch, classes), draw(batch, classes).exp(), factors, draw(batch, classes) if kind == "pe" else None


def seed_of(value: int) -> torch.Tensor:
    return torch.tensor(value, device=DEVICE)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(counter, key, words):
    assert " ".join(f"{int(word):08x}" for word in philox(counter, key)) == words


# ---------------------------------------------------------------- what needs a GPU or the interpreter


class TestKernels:
    __test__ = HERE

    def test_available(self):
        assert kernels.available(DEVICE)

    @pytest.mark.parametrize(
        ("seed", "antithetic", "per_example"),
        [(0, False, False), (-7, True, True), *((3 * 2**40 + 5, *flags) for flags in product((False, True), repeat=2))],
    )
    def test_draws_are_philox_and_box_muller_of_their_place(self, seed, antithetic, per_example):
        ours = kernels.draws(seed_of(seed), 22, 30, 3, 3, per_example=per_example, antithetic=antithetic, device=DEVICE)
        right = draws(seed, 22, 33, 3 if per_example else 1, antithetic)
        assert ours.dtype == torch.float32
        np.testing.assert_allclose(ours.cpu().numpy(), right, rtol=0, atol=3e-6)

    def test_normals_are_normal(self):
        x = kernels.draws(seed_of(11), 400, 58, 6, 1, device=DEVICE).double().flatten()
        count = len(x)
        assert count == 25_600
        assert abs(x.mean()) < 4 * count**-0.5
        assert abs(x.var() - 1) < 4 * (2 / count) ** 0.5
        assert abs((x**3).mean()) < 4 * (15 / count) ** 0.5
        assert abs((x**4).mean() - 3) < 4 * (96 / count) ** 0.5
        assert 3.6 < x.abs().max() < 6.8  # the least and the most that so many and Box-Muller's 32 bits give

    def test_no_draw_is_made_twice(self):
        x = kernels.draws(seed_of(12), 64, 90, 6, 3, per_example=True, device=DEVICE).cpu().numpy()
        calls = x.reshape(3, 16, 4, 96).transpose(0, 1, 3, 2).reshape(-1, 4)  # floats may agree by chance, four do not
        assert len(np.unique(calls, axis=0)) == len(calls) == 3 * 16 * 96

    @pytest.mark.parametrize("kind", ["diag", "full", "pe"])
    @pytest.mark.parametrize(
        ("batch", "classes", "samples", "rank", "per_example", "antithetic"),
        [
            (1, 37, 17, 3, False, False),  # a second block of classes, of samples, and of low-rank draws; ragged ends
            (2, 5, 1, 1, False, False),
            (1, 70, 2, 17, False, False),  # a rank beyond 16
            (18, 5, 2, 1, False, True),  # more blocks of examples than programs for pe
            (2, 37, 9, 3, True, False),
            (2, 5, 10, 1, True, True),
        ],
    )
    def test_value_and_gradients(self, kind, batch, classes, samples, rank, per_example, antithetic):
        inputs, seed = problem(kind, batch, classes, rank), 2**50 + 1
        options = {"per_example": per_example, "antithetic": antithetic}
        grad = torch.randn(batch, classes, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        columns = classes + (rank if inputs[2] is not None else 0)
        noise = draws(seed, samples, columns, batch if per_example else 1, antithetic)
        right, right_gradients = dense(*inputs, noise, grad)

        log_probs, lse = kernels.forward(*inputs, seed_of(seed), samples, **options)
        assert lse.shape == (batch, samples)
        assert error(log_probs, right) <= 1e-5
        gradients = kernels.backward(grad, log_probs, lse, *inputs, seed_of(seed), samples, **options)
        for ours, theirs in zip(gradients, right_gradients, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert error(ours, theirs) <= 1e-5

    @pytest.mark.parametrize("kind", ["diag", "full", "pe"])
    def test_probabilities_below_every_float_are_right_and_so_are_their_gradients(self, kind):
        loc, scale, factors, gain = problem(kind, 2, 7, 3)
        loc = loc - torch.linspace(0, 200, 7, device=DEVICE) + 1000
        grad = torch.zeros_like(loc)
        grad[:, -1] = 1
        noise = draws(5, 9, 7 if kind == "diag" else 10, 1, False)
        right, right_gradients = dense(loc, scale, factors, gain, noise, grad)
        assert right.min() < -150  # p < 1e-65: it is 0 in float32

        log_probs, lse = kernels.forward(loc, scale, factors, gain, seed_of(5), 9)
        gradients = kernels.backward(grad, log_probs, lse, loc, scale, factors, gain, seed_of(5), 9)
        assert error(log_probs, right) <= 1e-5
        for ours, theirs in zip(gradients, right_gradients, strict=True):
            assert ours is None or error(ours, theirs) <= 1e-5

    @pytest.mark.parametrize("kind", ["diag", "full", "pe"])
    def test_equal_calls_give_equal_bits(self, kind):
        inputs = problem(kind, 2, 5, 3)
        grad = torch.ones_like(inputs[0])

        def call(seed):
            log_probs, lse = kernels.forward(*inputs, seed_of(seed), 5)
            gradients = kernels.backward(grad, log_probs, lse, *inputs, seed_of(seed), 5)
            return [x for x in (log_probs, lse, *gradients) if x is not None]

        first = call(1)
        assert all(torch.equal(a, b) for a, b in zip(first, call(1), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, call(2), strict=True))


# ---------------------------------------------------------------- what needs neither

if not HERE:

    def test_kernels_in_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-W", "ignore", __file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    def test_without_a_gpu_the_kernels_are_not_available():
        assert not kernels.available(DEVICE)


if not INTERPRETED:

    @pytest.mark.skipif("nvidia" not in triton.backends.backends, reason="this Triton has no compiler for CUDA")
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("_draws", 0),
            *((name, kind) for name in ("_rows", "_rows backward", "_average", "_gradients") for kind in range(3)),
        ],
    )
    def test_kernels_compile_for_a_gpu(name, kind):
        """The interpreter runs what the compiler refuses, such as a loop's variable that changes its type."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kernel = getattr(kernels, name.split()[0])
        constants = {"BACKWARD": "backward" in name, "KIND": kind, "PER_EXAMPLE": kind == 0, "ANTITHETIC": kind == 1}
        constants |= {"RP": 4, "BB": 2, "BK": 32, "BS": 4}
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        integers = {"B", "K", "R", "S", "SP", "classes_each", "samples_each", "columns"}
        kinds = {"seed_at": "*i64", **dict.fromkeys(constants, "constexpr")}
        kinds |= {key: "i32" for key in kernel.arg_names if key in integers or key.endswith("_stride")}
        signature = {key: kinds.get(key, "*fp32") for key in kernel.arg_names}
        source = ASTSource(kernel, signature, constexprs=constants)
        options = {"num_warps": 1, "enable_fp_fusion": True}
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm

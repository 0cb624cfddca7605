"""The heteroscedastic head against the implementation that holds [batch, samples, classes]: time, memory, accuracy.

    python scripts/bench_heteroscedastic.py                      # every row, some minutes on two cores
    python scripts/bench_heteroscedastic.py --rows time,memory   # some of them

Prints one line a figure. `dense` is plain autograd on log(mean(softmax)), with the same shared draws.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from noisebench.nn import mc_log_probs

Step = Callable[[int], Tensor]
TARGET = {"B": 64, "K": 1000, "R": 15}


def tensors(batch: int, classes: int, rank: int, device: str = "cpu", pe: bool = False) -> dict[str, Tensor]:
    """loc, scale, factors (and gain) with gradients, of the size that a head has."""
    torch.manual_seed(0)
    made = {"loc": torch.randn(batch, classes), "scale": torch.rand(batch, classes) + 0.1}
    made["factors"] = 0.3 * torch.randn(*((classes, rank) if pe else (batch, classes, rank)))
    if pe:
        made["gain"] = torch.randn(batch, classes)
    return {k: v.to(device).requires_grad_() for k, v in made.items()}


def dense(samples: int, loc: Tensor, scale: Tensor, factors: Tensor) -> Tensor:
    """Every sample in memory."""
    e = torch.randn(samples, loc.shape[1], device=loc.device)
    z = torch.randn(samples, factors.shape[-1], device=loc.device)
    u = loc[:, None] + scale[:, None] * e + z @ factors.transpose(1, 2)
    return u.softmax(-1).mean(1).log()


def dense_log(samples: int, loc: Tensor, scale: Tensor, factors: Tensor) -> Tensor:
    """Every sample in memory, averaged in the log domain: as exact for small probabilities as the streamed one."""
    e = torch.randn(samples, loc.shape[1], device=loc.device)
    z = torch.randn(samples, factors.shape[-1], device=loc.device)
    u = loc[:, None] + scale[:, None] * e + z @ factors.transpose(1, 2)
    return u.log_softmax(-1).logsumexp(1) - math.log(samples)


MATERIALISING = {"dense": dense, "dense in the log domain": dense_log}


def step_of(kind: str, given: dict[str, Tensor]) -> Step:
    """Forward and backward through cross-entropy, with this many samples."""
    y = torch.arange(len(given["loc"]), device=given["loc"].device) % given["loc"].shape[1]

    def step(samples: int) -> Tensor:
        for t in given.values():
            t.grad = None
        if kind in MATERIALISING:
            found = MATERIALISING[kind](samples, **given)
        else:
            found = mc_log_probs(**given, temperature=1.0, num_samples=samples, backend=kind)
        loss = F.nll_loss(found, y)
        loss.backward()
        return loss.detach()

    return step


# ------------------------------------------------------------------------------------------------------- rows


def time_row() -> None:
    """Forward + backward, B=64 K=1000 R=15 S=1000, paired: one round of each after the other."""
    steps = {kind: step_of(kind, tensors(**_sizes())) for kind in (*MATERIALISING, "eager", "compiled")}
    for kind, step in steps.items():
        began = time.perf_counter()
        step(1000)
        if kind == "compiled":
            print(f"time: first step of compiled, with compiling: {time.perf_counter() - began:.1f} s")
    rounds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(9):
        for kind, step in steps.items():
            began = time.perf_counter()
            step(1000)
            rounds[kind].append(time.perf_counter() - began)
    for kind in ("eager", "compiled"):
        for other in MATERIALISING:
            ratios = sorted(a / b for a, b in zip(rounds[kind], rounds[other], strict=True))
            ratio = statistics.median(ratios)
            mine, theirs = (statistics.median(rounds[name]) for name in (kind, other))
            print(
                f"time: {kind} {mine:.3f} s, {other} {theirs:.3f} s: ratio median {ratio:.3f} (1/{1 / ratio:.1f}), "
                f"9 pairs {ratios[0]:.3f} to {ratios[-1]:.3f}"
            )


def memory_row() -> None:
    """Peak above that of S=1, in a process of its own for each kind."""
    found = {kind: _peaks(kind, (1, 1000)) for kind in ("dense", "eager", "compiled")}
    above = {kind: peaks[1] - peaks[0] for kind, peaks in found.items()}
    for kind in ("eager", "compiled"):
        print(
            f"memory: {kind} {above[kind]:.1f} MB above S=1, dense {above['dense']:.0f} MB: "
            f"1/{above['dense'] / max(above[kind], 0.1):.0f}"
        )


def samples_row() -> None:
    """S from 1,000 to 10,000: memory, of the process and above S=1, and time."""
    for kind in ("eager", "compiled"):
        one, first, second = _peaks(kind, (1, 1000, 10_000))
        print(
            f"samples: {kind} peak of the process {first:.1f} MB at S=1,000, {second:.1f} MB at S=10,000 "
            f"({second / first - 1:+.1%}); above S=1 {first - one:.1f} and {second - one:.1f} MB"
        )
        step = step_of(kind, tensors(**_sizes()))
        step(1000)
        seconds = []
        for samples in (1000, 10_000):
            began = time.perf_counter()
            step(samples)
            seconds.append(time.perf_counter() - began)
        print(f"samples: {kind} {seconds[0]:.2f} s and {seconds[1]:.2f} s: {seconds[1] / seconds[0]:.1f} times")


def large_row() -> None:
    """pe, K=21,843, R=50, S=1000, B=32."""
    for kind in ("eager", "compiled"):
        began = time.perf_counter()
        (peak,) = _peaks(kind, (1000,), B=32, K=21_843, R=50, pe=True)
        print(f"large: pe K=21,843 R=50 S=1000 B=32, {kind}: peak of the process {peak / 1000:.2f} GB, ", end="")
        print(f"{time.perf_counter() - began:.0f} s for three steps, start and compiling")


def spread_row() -> None:
    """Standard deviation of log p_y and of its gradient over 100 draws, by way of sampling."""
    for classes, rank in ((10, 3), (1000, 15)):
        torch.manual_seed(0)
        loc, scale = torch.randn(1, classes), torch.rand(1, classes) + 0.5
        factors = 0.5 * torch.randn(1, classes, rank)
        y = int(loc.argmax())
        base: tuple[float, float] | None = None
        for sampling in ("plain", "antithetic", "sobol"):
            values, gradients = [], []
            for _ in range(100):
                given = loc.clone().requires_grad_()
                found = mc_log_probs(given, scale, factors, temperature=1.0, num_samples=1024, sampling=sampling)[0, y]
                found.backward()
                values.append(found.detach())
                gradients.append(given.grad)
            sd = float(torch.stack(values).double().std()), float(torch.stack(gradients).double().std(0).norm())
            base = base or sd
            print(
                f"spread: K={classes} R={rank} S=1,024 {sampling:<10} sd of log p_y {sd[0]:.2e} "
                f"({sd[0] / base[0]:.2f} of plain), of its gradient {sd[1]:.2e} ({sd[1] / base[1]:.2f})"
            )


def brute_row() -> None:
    """E[softmax(u / t)] and E[sigmoid(u / t)] against 4 million samples, written a second way in numpy."""
    import numpy as np

    normal = np.random.default_rng(0)
    classes, rank, count = 8, 3, 4_000_000
    worst = {}
    for form in ("diag", "full", "pe"):
        mean, scale = normal.standard_normal(classes), normal.random(classes) + 0.2
        factors, gain = normal.standard_normal((classes, rank)), normal.standard_normal(classes)
        root = np.diag(scale)
        if form != "diag":
            root = np.concatenate([root, factors if form == "full" else gain[:, None] * factors], 1)
        wide = {"loc": mean[None], "scale": scale[None]}
        if form != "diag":
            wide["factors"] = factors[None] if form == "full" else factors
        given = {k: torch.tensor(v) for k, v in wide.items()}
        if form == "pe":
            given["gain"] = torch.tensor(gain[None])
        for temperature in (0.5, 1.0, 1.5):
            for link in ("softmax", "sigmoid"):
                total, square = np.zeros(classes), np.zeros(classes)
                for _ in range(20):
                    u = (mean + normal.standard_normal((count // 20, root.shape[1])) @ root.T) / temperature
                    p = np.exp(u - u.max(1, keepdims=True)) if link == "softmax" else 1 / (1 + np.exp(-u))
                    p = p / p.sum(1, keepdims=True) if link == "softmax" else p
                    total, square = total + p.sum(0), square + (p * p).sum(0)
                expected = total / count
                error = np.sqrt((square / count - expected**2) / count)
                found = mc_log_probs(**given, temperature=temperature, num_samples=count, link=link)
                ours = (found.exp() if link == "softmax" else found.sigmoid())[0].numpy()
                # Both sides are samples for softmax; quadrature has no error of its own.
                error = error * math.sqrt(2 if link == "softmax" else 1)
                worst[form, temperature, link] = float((abs(ours - expected) / error).max())
    for (form, temperature, link), deviation in worst.items():
        print(f"brute: {form:<4} temperature {temperature} {link:<7} within {deviation:.1f} standard errors")


def cuda_row() -> None:
    """Fused kernels on a GPU; says so where there is none."""
    if not torch.cuda.is_available():
        print("cuda: no GPU here")
        return
    name = torch.cuda.get_device_name()
    given = {"batch": 256, "classes": 1000, "rank": 15, "device": "cuda"}
    made, samples = tensors(**given), 250
    with suppress(torch.cuda.OutOfMemoryError):
        while samples < 10_000:
            step_of("dense", made)(2 * samples)
            samples *= 2
    torch.cuda.empty_cache()
    seconds = {kind: _gpu_seconds(step_of(kind, made), samples) for kind in ("dense", "triton", "eager")}
    told = ", ".join(f"{kind} {value * 1e3:.1f} ms" for kind, value in seconds.items())
    print(f"cuda: {name}, B=256 K=1000 R=15 S={samples}, the largest power of two that dense fits: {told}")
    print(f"cuda: triton {seconds['dense'] / seconds['triton']:.1f} times as fast as dense")
    long = _gpu_seconds(step_of("triton", made), 10_000)
    rate = 256 * 1000 * 10_000 * 4 / long  # two passes forward, two backward, an exponential in each
    device = torch.cuda.get_device_properties(0)
    limit = device.multi_processor_count * 16 * device.clock_rate * 1e3  # special-function units: 16 a clock and SM
    print(f"cuda: S=10,000: {long * 1e3:.1f} ms, {rate:.2e} exponentials/s, {rate / limit:.0%} of the units' limit")


def _gpu_seconds(step: Callable[[int], object], samples: int) -> float:
    found = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step(samples)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


ROWS = {
    "time": time_row,
    "memory": memory_row,
    "samples": samples_row,
    "large": large_row,
    "spread": spread_row,
    "brute": brute_row,
    "cuda": cuda_row,
}


def _sizes() -> dict[str, int]:
    return {"batch": TARGET["B"], "classes": TARGET["K"], "rank": TARGET["R"]}


def _peaks(
    kind: str, samples: tuple[int, ...], B: int = 64, K: int = 1000, R: int = 15, pe: bool = False
) -> list[float]:
    """Peak resident megabytes of a step with each number of samples, after a first step that nobody counts (Linux)."""
    arguments = [kind, str(B), str(K), str(R), str(int(pe)), *map(str, samples)]
    done = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def _child(kind: str, batch: str, classes: str, rank: str, pe: str, *samples: str) -> None:
    torch.set_num_threads(2)
    step = step_of(kind, tensors(int(batch), int(classes), int(rank), pe=bool(int(pe))))
    for count in map(int, samples):
        step(count)  # compiles, where that is asked for
    for count in map(int, samples):
        step(count)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        step(count)
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        print(int(status.split()[0]) / 1024)


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="by commas: %(default)s")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        _child(*chosen.child)
        return
    torch.set_num_threads(2)
    for row in chosen.rows.split(","):
        ROWS[row]()


if __name__ == "__main__":
    main()

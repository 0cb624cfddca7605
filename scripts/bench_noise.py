"""Time and memory of label noise at the sizes that matter: ImageNet-21k's labels, CIFAR-10's images.

Run it as ``python scripts/bench_noise.py``; it exits with 1 where a bar is missed.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from noisebench import noise

RUNS = 3


def symmetric() -> Callable[[], noise.NoisyLabels]:
    """14 million labels of 21,841 classes, symmetric 40%."""
    labels = np.random.default_rng(0).integers(0, 21_841, 14_000_000)
    return lambda: noise.inject(labels, "symmetric", 0.4, num_classes=21_841, seed=0)


def instance() -> Callable[[], noise.NoisyLabels]:
    """50,000 images of 3,072 uint8 numbers, 10 classes, instance-dependent 40%."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 50_000)
    features = generator.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    return lambda: noise.inject(labels, "instance", 0.4, num_classes=10, seed=0, features=features)


def main() -> int:
    """Print the table; the best of a few runs, and the peak of one more under tracemalloc."""
    print(f"{'case':<34}{'seconds':>9}{'bar':>7}{'peak MiB':>10}{'labels MiB':>12}{'realised':>10}")
    late = False
    for name, make, bar in (
        ("symmetric 14M labels, K = 21,841", symmetric, 2.0),
        ("instance 50,000 x 3,072, K = 10", instance, 3.0),
    ):
        run = make()
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            noisy = run()
            seconds.append(time.perf_counter() - start)
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        late |= min(seconds) > bar
        print(
            f"{name:<34}{min(seconds):>9.2f}{bar:>7.1f}{peak / 2**20:>10.0f}{noisy.labels.nbytes / 2**20:>12.1f}"
            f"{noisy.realised_rate:>10.4f}"
        )
    return int(late)


if __name__ == "__main__":
    sys.exit(main())

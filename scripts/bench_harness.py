"""What the harness costs: an epoch through it against the same epoch in a bare loop over the same tensors.

    python scripts/bench_harness.py [--rounds 11] [--samples 6400]

A small CNN on 28x28 images, batch 128, one thread; evaluation and logging are counted apart. The two alternate, and the
median of the ratios is printed beside the bar.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch.nn import functional as F

from noisebench.assembly import Setup, method_class
from noisebench.config import Recipe
from noisebench.data import ImageData
from noisebench.fitting import Memory
from noisebench.training import train_epoch

BAR = 1.05
BATCH = 128


def images(samples: int) -> ImageData:
    """Random 28x28 images under random labels."""
    draw = np.random.default_rng(0)

    def some(n: int) -> tuple[np.ndarray, np.ndarray]:
        return draw.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), draw.integers(0, 10, n)

    (x, y), (test_x, test_y) = some(samples), some(1000)
    return ImageData(
        train_images=x, train_labels=y, test_images=test_x, test_labels=test_y, num_classes=10,
        classes=tuple("abcdefghij"), mean=(0.5,), std=(0.3,),
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=6400)
    options = parser.parse_args()
    recipe = Recipe(epochs=options.rounds + 1, batch_size=BATCH, validation=0, lr=0.01)
    data = images(options.samples)
    cls = method_class("ce")

    setup = Setup(cls, cls.Hparams(), data, data.train_labels, recipe, 0, accelerator="cpu")
    run, method = setup.run, setup.method

    bare_setup = Setup(cls, cls.Hparams(), data, data.train_labels, recipe, 0, accelerator="cpu")
    net = bare_setup.method.net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x = (torch.from_numpy(data.train_images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.3
    x, y = x.contiguous(memory_format=torch.channels_last), torch.from_numpy(data.train_labels)

    def bare() -> None:
        net.train()
        order = torch.randperm(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            index = order[i : i + BATCH]
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()

    ratios, times, evaluations = [], [], []
    journal = Memory()
    for round_ in range(options.rounds + 1):
        began = time.perf_counter()
        train_epoch(run, method, round_)
        middle = time.perf_counter()
        bare()
        end = time.perf_counter()
        method.eval()
        with torch.no_grad():
            journal.epoch(round_ + 1, setup.evaluator(method, run))
        evaluated = time.perf_counter() - end
        if round_:  # the first warms up
            ratios.append((middle - began) / (end - middle))
            times.append(end - middle)
            evaluations.append(evaluated)
    steps = len(x) // BATCH
    print(f"| what | bar | measured (median of {options.rounds} paired epochs of {steps} steps) |")
    print("| --- | --- | --- |")
    print(
        f"| epoch through the harness / bare loop | at most {BAR} | {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f}; bare {1000 * statistics.median(times) / steps:.2f} ms a step) |"
    )
    print(f"| evaluation on 1,000 test images, counted apart | - | {1000 * statistics.median(evaluations):.0f} ms |")


if __name__ == "__main__":
    main()

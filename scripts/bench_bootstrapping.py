"""Dynamic bootstrapping: what a step costs beside cross-entropy, and how well P(noisy) tells flipped labels from kept.

    python scripts/bench_bootstrapping.py                          # both rows; `separation` needs NOISEBENCH_DATA
    python scripts/bench_bootstrapping.py --rows step --backbone preact_resnet18 --samples 640
    python scripts/bench_bootstrapping.py --rows separation --dataset fashion_mnist --rate 0.6

`step` alternates epochs of `m_dyr_h` in its bootstrapping phase (three forward passes, and the pass over the training
set at the end of the epoch) with epochs of `ce`, in one process, and prints the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch

from noisebench.assembly import Setup, make_hparams, method_class, split
from noisebench.config import Noise, Recipe, build
from noisebench.data import ImageData
from noisebench.files import data_root_from
from noisebench.loading import load_dataset, make_noise
from noisebench.scoring import area_under_roc, calibration_error
from noisebench.training import train_epoch

STEP_BAR = 2.3
AUC_BAR = 0.97


def images(samples: int, side: int) -> ImageData:
    """Random colour images under random labels."""
    draw = np.random.default_rng(0)

    def some(count: int) -> tuple[Any, Any]:
        return draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8), draw.integers(0, 10, count)

    (x, y), (test_x, test_y) = some(samples), some(100)
    return ImageData(
        train_images=x, train_labels=y, test_images=test_x, test_labels=test_y, num_classes=10,
        classes=tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.3,) * 3,
    )  # fmt: skip


def step(args: argparse.Namespace) -> dict[str, Any]:
    """The median ratio of paired epochs, `m_dyr_h` to `ce`."""
    data = images(args.samples, 32)
    recipe = Recipe(
        backbone=args.backbone,
        epochs=args.rounds + 2,
        validation=0,
        lr=0.01,
        padding=4,
        flip=True,
        threads=args.threads,
    )
    setups = {}
    for name, settings in (("ce", {}), ("m_dyr_h", {"start": 1})):
        cls = method_class(name)
        hparams = make_hparams(cls, settings, name)
        setups[name] = Setup(cls, hparams, data, data.train_labels, recipe, 0, accelerator="cpu")
    seconds: dict[str, list[float]] = {name: [] for name in setups}
    for epoch in range(args.rounds + 2):
        for name, setup in setups.items():
            began = time.perf_counter()
            train_epoch(setup.run, setup.method, epoch)
            seconds[name].append(time.perf_counter() - began)
    # The first epoch is mixup alone, the second warms the new code up.
    ratios = [a / b for a, b in zip(seconds["m_dyr_h"][2:], seconds["ce"][2:], strict=True)]
    return {
        "backbone": args.backbone,
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
        "bar": STEP_BAR,
        "ce_ms_a_step": round(1000 * statistics.median(seconds["ce"][2:]) / (args.samples // recipe.batch_size), 2),
    }


def separation(args: argparse.Namespace) -> dict[str, Any]:
    """AUC of P(noisy) and of the raw loss after training, and the ECE of P(noisy)."""
    recipe = build(Recipe, json.loads(args.recipe), "--recipe")
    data = load_dataset(args.dataset, data_root_from(args.data_root))
    noisy = make_noise(Noise(kind="symmetric", rate=args.rate), data, args.seed)
    cls = method_class("m_dyr_h")
    setup = Setup(cls, cls.Hparams(), data, noisy.labels, recipe, args.seed, noisy, "cpu")
    began = time.perf_counter()
    for epoch in range(recipe.epochs):
        train_epoch(setup.run, setup.method, epoch)
    method: Any = setup.method.eval()
    at = split(len(noisy.labels), recipe, args.seed)[0].numpy()
    flipped = torch.from_numpy((noisy.labels != data.train_labels)[at])
    scores = method.noise_scores(setup.run)
    with torch.no_grad():
        right = setup.evaluator.score(*setup.evaluator.predict_test(method, setup.run))["accuracy"]
    return {
        "dataset": args.dataset,
        "images": len(at),
        "rate": args.rate,
        "seed": args.seed,
        "auc": round(area_under_roc(scores, flipped), 4),
        "auc_of_the_loss": round(area_under_roc(method.losses, flipped), 4),
        "ece": round(calibration_error(scores, flipped), 4),
        "bar": AUC_BAR,
        "test_accuracy": round(right, 4),
        "seconds": round(time.perf_counter() - began),
    }


SEPARATION_RECIPE = {
    "backbone_options": {"stem_stride": 2, "widths": [32, 64, 128]},
    "epochs": 20,
    "train_size": 20000,
    "weight_decay": 1e-4,
    "validation": 0,
    "schedule": {"kind": "multistep", "milestones": [0.33333, 0.83333]},
}


def main() -> None:
    """Print the rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="step,separation")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbone", default="small_cnn")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--rate", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root")
    parser.add_argument("--recipe", default=json.dumps(SEPARATION_RECIPE), help="of `separation`, as JSON")
    args = parser.parse_args()
    rows = {"step": step, "separation": separation}
    for row in args.rows.split(","):
        if row not in rows:
            parser.error(f"--rows: '{row}' is none of {', '.join(rows)}")
        print(json.dumps({"row": row} | rows[row](args)), flush=True)


if __name__ == "__main__":
    main()

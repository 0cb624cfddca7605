"""How near a learned T comes to the true one, beside the identity and beside what the labels themselves hold.

    python scripts/bench_transition.py                            # digits
    python scripts/bench_transition.py --dataset fashion_mnist    # needs NOISEBENCH_DATA

Trains `transition` with its defaults, one regulariser weight for every kind of noise, and prints the mean absolute
error of its T as a share of that of the identity: to T as asked; to T as counted in the labels drawn; and of the
latter to the former, which is what chance alone does to so many labels.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from noisebench.assembly import Setup, make_hparams, method_class
from noisebench.config import Noise, Recipe, build
from noisebench.files import data_root_from
from noisebench.loading import load_dataset, make_noise
from noisebench.training import train_epoch

BAR = 0.3
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 30, "batch_size": 32, "weight_decay": 5e-3, "padding": 1},
    "fashion_mnist": {
        "epochs": 12,
        "weight_decay": 5e-4,
        "padding": 2,
        "train_size": 20000,
        "backbone_options": {"stem_stride": 2},
    },
}


def measure(dataset: str, kind: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of `transition`, and the errors of its T."""
    settings = {"validation": 0, "schedule": {"kind": "cosine", "warmup": 2}} | RECIPES[dataset]
    recipe = build(Recipe, settings | json.loads(args.recipe), "--recipe")
    data = load_dataset(dataset, data_root_from(args.data_root))
    noisy = make_noise(Noise(kind=kind, rate=rate), data, seed)
    cls = method_class("transition")
    hparams = make_hparams(cls, json.loads(args.hparams), "--hparams")
    setup = Setup(cls, hparams, data, noisy.labels, recipe, seed, noisy, "cpu")
    for epoch in range(recipe.epochs):
        train_epoch(setup.run, setup.method, epoch)
    method: Any = setup.method.eval()
    asked = torch.from_numpy(noisy.transition.copy())
    counted = torch.from_numpy(noisy.realised_transition(data.train_labels))
    identity = torch.eye(len(asked), dtype=torch.float64)

    def share(matrix: Tensor, true: Tensor) -> float:
        return round(float((matrix - true).abs().mean() / (identity - true).abs().mean()), 3)

    learned = method.transition().double()
    with torch.no_grad():
        accuracy = setup.evaluator.score(*setup.evaluator.predict_test(method, setup.run))["accuracy"]
    return {
        "dataset": dataset,
        "noise": noisy.description,
        "seed": seed,
        "learned_to_asked": share(learned, asked),
        "learned_to_counted": share(learned, counted),
        "counted_to_asked": share(counted, asked),
        "bar": BAR,
        "test_accuracy": round(accuracy, 4),
    }


def main() -> None:
    """Print a JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=list(RECIPES))
    parser.add_argument("--kinds", default="symmetric,asymmetric")
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--hparams", default="{}", help="of `transition`, as JSON")
    parser.add_argument("--recipe", default="{}", help="changes to the recipe, as JSON")
    parser.add_argument("--data-root")
    args = parser.parse_args()
    for kind in args.kinds.split(","):
        for seed in args.seeds.split(","):
            print(json.dumps(measure(args.dataset, kind, args.rate, int(seed), args)), flush=True)


if __name__ == "__main__":
    main()

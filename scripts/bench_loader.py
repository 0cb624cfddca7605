"""Images per second of noisebench's resident CIFAR-10 pipeline beside torchvision's DataLoader.

Both give whole shuffled epochs of random crop (padding 4), horizontal flip and normalisation in batches of 128. The two
take turns, so that other load on the machine meets both; the bar is on the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from noisebench.data import Augmentation, make_loader

BAR = 12
BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def images_per_second(batches: Iterable[Any], device: torch.device) -> float:
    """A whole pass, its start included."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        batch[0].to(device, non_blocking=True)
        count += len(batch[1])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def main() -> int:
    """Print the table; the exit status is 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("NOISEBENCH_DATA"), help="default: $NOISEBENCH_DATA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="torch's; a cell of a board has one on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not args.data_root:
        parser.error("give --data-root or set NOISEBENCH_DATA")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)

    steps = [
        transforms.RandomCrop(32, 4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    cifar = CIFAR10(args.data_root, train=True, transform=transforms.Compose(steps))
    torchvision_loader = DataLoader(
        cifar,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    resident = make_loader(
        cifar.data,
        torch.tensor(cifar.targets),
        device=device,
        augmentation=Augmentation(padding=4, flip=True, mean=MEAN, std=STD),
        mode="resident",
    )

    def ours(seed: int) -> float:
        batches = resident.batches(batch_size=BATCH, order_seed=seed, augment_seed=seed)
        return images_per_second(batches, device)

    ours(0)  # warm both up: worker processes, allocator
    images_per_second(torchvision_loader, device)
    print(f"{'round':>5} {'torchvision, 2 workers':>24} {'resident':>12} {'ratio':>7}   (images/s, {device})")
    ratios = []
    for i in range(1, args.rounds + 1):
        theirs, mine = images_per_second(torchvision_loader, device), ours(i)
        ratios.append(mine / theirs)
        print(f"{i:>5} {theirs:>24,.0f} {mine:>12,.0f} {ratios[-1]:>7.1f}", flush=True)
    median = statistics.median(ratios)
    print(f"median ratio {median:.1f}, bar {BAR}: {'passed' if median >= BAR else 'MISSED'}")
    return 0 if median >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

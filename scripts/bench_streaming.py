"""Images per second of noisebench's streaming pipeline beside torchvision's ImageFolder and DataLoader.

Both read the same JPEG files with two workers and give whole shuffled epochs of 224 x 224 Inception crops, flipped and
normalised, in batches of 64 on the device. The two take turns, so that other load on the machine meets both; the bar is
on the median of the ratios of neighbours. "decoding only" is one thread that does nothing else, for orientation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

from noisebench.data import Augmentation, make_loader
from noisebench.decoding import decode
from noisebench.image_index import list_folders

BAR = 1.5
BATCH, SIZE, WORKERS = 64, 224, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = {"500x375 q90": (500, 375, 90), "1024x768 q85": (1024, 768, 85)}


def write_tree(folder: Path, count: int, width: int, height: int, quality: int, root: str | None) -> None:
    """Two classes of JPEGs: CIFAR-10 pictures enlarged, or smooth random fields, both with a grain."""
    rng = np.random.default_rng(0)
    pictures = CIFAR10(root).data if root else rng.integers(0, 256, (count, 9, 12, 3), dtype=np.uint8)
    for i in range(count):
        smooth = Image.fromarray(pictures[i]).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 5, (height, width, 1))
        pixels = (np.asarray(smooth) + grain).round().clip(0, 255).astype(np.uint8)
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=quality)


def images_per_second(batches: Iterable[Any], device: torch.device) -> float:
    """A whole pass, its start included."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        batch[0].to(device, non_blocking=True)
        count += len(batch[1])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def measure(kind: str, folder: Path, rounds: int, device: torch.device) -> float:
    """The median ratio; prints a line for each round."""
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    torchvision_loader = DataLoader(
        ImageFolder(str(folder), transforms.Compose(steps)),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    listed = list_folders(folder)
    streaming = make_loader(
        listed.images,
        torch.from_numpy(listed.labels),
        device=device,
        augmentation=Augmentation(mean=MEAN, std=STD, flip=True),
        workers=WORKERS,
        size=SIZE,
    )

    def ours(seed: int) -> float:
        batches = streaming.batches(batch_size=BATCH, order_seed=seed, augment_seed=seed)
        return images_per_second(batches, device)

    start = time.perf_counter()
    for i in range(BATCH):
        decode(listed.images.encoded(i), "")
    alone = BATCH / (time.perf_counter() - start)
    ours(0)  # warm both up: worker processes, the page cache
    images_per_second(torchvision_loader, device)
    ratios = []
    for i in range(1, rounds + 1):
        theirs, mine = images_per_second(torchvision_loader, device), ours(i)
        ratios.append(mine / theirs)
        print(f"{kind:>13} {i:>5} {alone:>14,.0f} {theirs:>12,.0f} {mine:>12,.0f} {ratios[-1]:>7.2f}", flush=True)
    return statistics.median(ratios)


def main() -> int:
    """Print the table; the exit status is 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", default=os.environ.get("NOISEBENCH_DATA"), help="of CIFAR-10; default: $NOISEBENCH_DATA"
    )
    parser.add_argument("--images", type=int, default=1024, help="in each tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch's, in the main process")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.images < BATCH:
        parser.error(f"--images is {args.images}; give {BATCH} or more")
    warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of torchvision's CIFAR10
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{'images':>13} {'round':>5} {'decoding only':>14} {'torchvision':>12} {'streaming':>12} {'ratio':>7}")
    medians = {}
    for kind, (width, height, quality) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_tree(Path(folder), args.images, width, height, quality, args.data_root)
            medians[kind] = measure(kind, Path(folder), args.rounds, device)
    for kind, median in medians.items():
        print(f"{kind}: median ratio {median:.2f}, bar {BAR}: {'passed' if median >= BAR else 'MISSED'}")
    return 0 if min(medians.values()) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

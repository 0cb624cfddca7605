"""How fast a folder of 1.3 million images opens, and how much memory that takes.

    python scripts/bench_index.py [--classes 1000] [--images 1300]

Makes class folders of empty files in a temporary folder, opens it in two fresh processes (the first builds the index)
and prints seconds and peak memory. The seconds are those of `list_folders` alone; the memory is the peak resident size
of the whole process with Python and NumPy but without torch (which the index does not import), mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR_SECONDS, BAR_MB = 2.0, 500


def make(folder: Path, classes: int, images: int) -> None:
    """`classes` folders of `images` empty files each, named as ImageNet's."""
    for c in range(classes):
        one = folder / f"n{c:08d}"
        one.mkdir()
        for i in range(images):
            os.close(os.open(f"{one}/n{c:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY))


def opening(folder: Path) -> dict[str, float]:
    """Open `folder` in this process: seconds and MB."""
    from noisebench.image_index import list_folders

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    listed = list_folders(folder)
    seconds = time.perf_counter() - began
    listed.images.name(len(listed.images) - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "mb": peak,
        "before": before,
        "images": len(listed.images),
        "torch": "torch" in sys.modules,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1300)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(opening(options.open)))
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), options.classes, options.images)
        time.sleep(2.5)  # what changed within the last 2 s is listed anew at every opening
        command = [sys.executable, __file__, "--open", name]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        size = sum(file.stat().st_size for file in Path(name, ".noisebench").glob("*.index"))
    print(
        f"{runs[0]['images']:,} files in {options.classes:,} folders; index {size / 2**20:.0f} MiB; "
        f"torch imported: {any(run['torch'] for run in runs)}"
    )
    print("| opening | bar | seconds | peak memory of the process, MiB | of these before opening |")
    print("| --- | --- | --- | --- | --- |")
    within = f"under {BAR_SECONDS:.0f} s, {BAR_MB} MB"
    for what, bar, run in zip(("first", "second", "third"), ("none", within, within), runs, strict=True):
        print(f"| {what} | {bar} | {run['seconds']:.2f} | {run['mb']:.0f} | {run['before']:.0f} |")


if __name__ == "__main__":
    main()

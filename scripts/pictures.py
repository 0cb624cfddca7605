"""The pictures of README.md and docs/: the default board in a terminal, and its report.

    python scripts/pictures.py [--out noisebench-runs] [--to docs/images]

--out is a folder with the finished default board (`noisebench leaderboard`). The terminal's picture is what the command
prints in a terminal of 110 columns, through rich's SVG; Chromium makes PNGs of both. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

COLUMNS = 110
COLOURS = 128
"""Of a picture's palette: enough for text and lines, and a third of the bytes."""


def printed(*command: str) -> str:
    """What a command writes to a terminal of `COLUMNS`, colours and all.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, b"".join(parts))
    return b"".join(parts).decode().replace("\r\n", "\n")


def terminal_svg(command: str, output: str) -> str:
    """A terminal with the command and its output, in a font of this machine."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", "bold"))
    console.print(Text.from_ansi(output.rstrip("\n")), soft_wrap=True)
    svg = console.export_svg(title="noisebench")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "DejaVu Sans Mono, monospace")


def shot(page: Any, target: Path, **options: Any) -> None:
    """The page as a PNG with a palette."""
    page.screenshot(path=target, **options)
    with Image.open(target) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(target, optimize=True)
    print(f"{target}: {small.width} x {small.height}, {target.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Make the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("noisebench-runs"))
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", choices=["board", "report"])
    options = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    options.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        if options.only != "report":
            command = ["noisebench", "leaderboard", "digits", "--rebuild", "runs", "--out", str(options.out)]
            svg = terminal_svg("noisebench leaderboard --rebuild runs", printed(*command))
            width, height = (round(float(side)) for side in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_content(f"<style>body {{ margin: 0 }}</style>{svg}")
            shot(page, options.to / "board.png")
        if options.only != "board":
            printed("noisebench", "report", "digits", "--out", str(options.out))
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, device_scale_factor=1.25)
            page.goto((options.out.absolute() / "boards" / "digits" / "report.html").as_uri())
            page.wait_for_load_state()
            shot(page, options.to / "report.png")
        browser.close()


if __name__ == "__main__":
    main()

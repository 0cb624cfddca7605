"""Run README.md as it stands: every command of its sh blocks and every python block, in order, as a reader would.

    python scripts/readme.py [--list] [README.md]

It happens in a copy of the working tree, with a virtual environment of its own on top of this one, so that neither the
checkout nor this environment is changed. The first command that fails stops it, with its line of the README. A python
block after a line with "Put this into `PATH`" is written there; others are run.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """A fenced block of a Markdown file.

    Attributes:
        line: of its first line of text, from 1.
        language: what stands behind the fence, e.g. "sh".
        before: the last line above it that is not empty.
        text: what is between the fences.
    """

    line: int
    language: str
    before: str
    text: str

    def commands(self) -> Iterator[tuple[int, str]]:
        """The commands of a sh block with their lines; what ends in a backslash goes on, a comment is none."""
        begun: list[str] = []
        for number, text in enumerate(self.text.splitlines(), self.line):
            begun.append(text)
            if not text.endswith("\\"):
                command = "\n".join(begun).strip()
                if command and not command.startswith("#"):
                    yield number - len(begun) + 1, command
                begun = []


def blocks(markdown: str) -> Iterator[Block]:
    """Every fenced block of a text, in order."""
    before, begun, language, first = "", None, "", 0
    for number, text in enumerate(markdown.splitlines(), 1):
        if begun is None and text.startswith("```"):
            begun, language, first = [], text[3:].strip(), number + 1
        elif begun is not None and text.startswith("```"):
            yield Block(first, language, before, "\n".join(begun) + "\n")
            begun, before = None, ""
        elif begun is not None:
            begun.append(text)
        elif text.strip():
            before = text


def steps(markdown: str) -> Iterator[tuple[int, str, str]]:
    """What a reader does: (line, "run", command), (line, "python", code) or (line, PATH, text to put there)."""
    for block in blocks(markdown):
        if block.language == "sh":
            for line, command in block.commands():
                yield line, "run", command
        elif block.language == "python":
            path = re.search("Put this into `(.+?)`", block.before)
            yield block.line, path[1] if path else "python", block.text


def working_copy(folder: Path) -> Path:
    """A copy of the checkout's files that are not ignored, with what has not been committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    there = b"\0".join(name for name in listed.split(b"\0") if name and os.path.lexists(ROOT / os.fsdecode(name)))
    copy = folder / "noisebench"
    copy.mkdir()
    pack = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=there, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=copy, input=pack.stdout, check=True)
    return copy


def environment(folder: Path) -> dict[str, str]:
    """The variables of a virtual environment in `folder` that also finds what is installed in this one."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", "venv", paths)) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return found | {"VIRTUAL_ENV": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def main() -> None:
    """Run the steps; exit code 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", nargs="?", type=Path, default=ROOT / "README.md")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy is removed then, too
    todo = list(steps(options.readme.read_text(encoding="utf-8")))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="noisebench-readme-") as name:
        if not options.list:
            copy, variables = working_copy(Path(name)), environment(Path(name, "env"))
        for line, what, text in todo:
            shown = {"run": text, "python": "python: " + text.strip().splitlines()[-1]}.get(what, f"write {what}")
            print(f"{options.readme.name}:{line}: {shown}", flush=True)
            if options.list:
                continue
            if what not in ("run", "python"):
                (copy / what).write_text(text, encoding="utf-8")
                continue
            command = ["bash", "-o", "pipefail", "-c", text] if what == "run" else ["python", "-c", text]
            start = time.perf_counter()
            code = subprocess.run(command, cwd=copy, env=variables, stdin=subprocess.DEVNULL).returncode
            if code:
                sys.exit(f"{options.readme.name}:{line}: ended with exit code {code}: {shown}")
            print(f"    {time.perf_counter() - start:.1f} s", flush=True)
    if not options.list:
        print(f"{len(todo)} steps of {options.readme.name} in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

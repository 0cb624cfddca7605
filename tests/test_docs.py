"""README.md and docs/: their Python is valid, marked blocks run, and every `noisebench` command line exists."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from noisebench import cli, registry
from noisebench.config import load_benchmark
from noisebench.errors import UserError

ROOT = Path(__file__).parents[1]
if not (ROOT / "mkdocs.yml").exists():
    pytest.skip("no checkout: neither README.md nor docs/", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))

from readme import Block, blocks, steps  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [(page.relative_to(ROOT).as_posix(), block) for page in PAGES for block in blocks(page.read_text("utf-8"))]


def of(language: str) -> list[Any]:
    """Every block of a language, to be a test of its own."""
    return [pytest.param(b, id=f"{page}:{b.line}") for page, b in BLOCKS if b.language == language]


# ----------------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize("block", of("python"))
def test_python_is_valid(block: Block) -> None:
    compile(block.text, "a page", "exec")


@pytest.mark.parametrize("block", [p for p in of("python") if p.values[0].before == "<!-- runs -->"])
def test_python_marked_as_running_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, "a page", "exec"), {"__name__": "a_page"})


# ----------------------------------------------------------------------------------------------- command lines

STANDS_FOR_A_NAME = {"NAME", "PAPER-TABLE", "my_method", "label_smoothing"}


@cache
def app() -> Any:
    return typer.main.get_command(cli.app)


def in_text(page: Path) -> list[str]:
    """Commands within sentences: `noisebench ...` with an argument or an option."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [found for found in re.findall(r"`(noisebench [^`]+)`", prose.replace("\n", " ")) if "..." not in found]


def written() -> list[Any]:
    found = [
        pytest.param(command, id=f"{page}:{line}")
        for page, block in BLOCKS
        if block.language == "sh"
        for line, command in block.commands()
        if "noisebench " in command
    ]
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        found += [pytest.param(text, id=f"{name}: {text}") for text in dict.fromkeys(in_text(page))]
    return found


def words_of(command: str) -> list[str]:
    """The words behind `noisebench`; none where it is installed or read about and not called."""
    parts = re.split(r"&&|\|\||;|\|", command.replace("\\\n", " "))
    for part in parts:
        words = shlex.split(part, comments=True)
        for at, word in enumerate(words):
            if word == "noisebench" and (at == 0 or words[at - 1] == "-m"):
                return words[at + 1 :]
    return []


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that these words name and what it is given; calls nothing.

    Raises:
        Exception: of the parser, for what it does not know.
    """
    command, name, context = app(), "noisebench", None
    while getattr(command, "commands", None):
        if words[0] not in command.commands:
            raise LookupError(f"{name} has no command '{words[0]}'")
        context = command.context_class(command, info_name=name, parent=context)
        command, name, words = command.commands[words[0]], words[0], words[1:]
    if not words:  # its name alone, in a sentence
        return name, {}
    return name, command.make_context(name, list(words), parent=context).params


@pytest.mark.parametrize("command", written())
def test_a_command_line_exists(command: str) -> None:
    words = words_of(command)
    if not words or words[0].startswith("-"):
        return
    try:
        name, given = parsed(words)
    except Exception as error:  # of the parser, whose home differs between versions of typer
        pytest.fail(f"{command}: {getattr(error, 'message', None) or error}")
    if name in ("leaderboard", "tune", "transfer", "report"):
        check_board(given)
    known = {"method": registry.methods().entries, "dataset": registry.datasets().entries}
    for key, names in known.items():
        value = given.get(key)
        if isinstance(value, str) and value not in STANDS_FOR_A_NAME:
            assert value.split("@")[0].split(":")[0] in names, f"{command}: no {key} '{value}'"


def check_board(given: dict[str, Any]) -> None:
    """The board that a command names exists, takes what --set gives it, and has the rows of --methods."""
    name, settings = given.get("benchmark") or "digits", list(given.get("settings") or [])
    of_the_reader = name.endswith((".yaml", ".yml")) or any(word in str(settings) for word in STANDS_FOR_A_NAME)
    if of_the_reader or name in STANDS_FOR_A_NAME:
        return
    board = load_benchmark(name, settings)
    for row in filter(None, (given.get("methods") or "").split(",")):
        assert row in {r.label for r in board.methods} | {r.name for r in board.methods} | set(STANDS_FOR_A_NAME)


@pytest.mark.parametrize("wrong", ["noisebench leaderbord", "noisebench list metods", "noisebench run --rat 0.4"])
def test_a_wrong_command_line_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        parsed(words_of(wrong))


def test_a_board_that_is_gone_is_found() -> None:
    with pytest.raises(UserError):
        check_board({"benchmark": "digitz"})


# -------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize("block", of("yaml"))
def test_a_board_in_a_page_is_valid(block: Block, tmp_path: Path) -> None:
    data = yaml.safe_load(block.text)
    whole = {"noise": [{"kind": "none"}], "methods": ["ce"], "datasets": ["digits"]} if "extends" not in data else {}
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump(whole | data), encoding="utf-8")
    for scale in (None, *data.get("scale", ())):
        assert load_benchmark(str(file), scale=scale).cells()


# ------------------------------------------------------------------------------------------------- the README


def test_images_of_pages_are_there_and_small_and_described() -> None:
    shown = 0
    for page in PAGES:
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8")):
            shown += 1
            assert len(alt) > 20, f"{page.name}: {target} has no description"
            assert (page.parent / target).stat().st_size < 300_000, f"{page.name}: {target} is too large"
    assert shown


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page.name}: {target}"


A_PAGE = """Text

```sh
# why
a \\
  b   # c

d
```

Put this into `x/y.py`; no more:

```python
1
```

```python
2
```

```text
no
```
"""


def test_scripts_that_pages_name_are_there() -> None:
    named = {found for page in PAGES for found in re.findall(r"scripts/\w+\.\w+", page.read_text("utf-8"))}
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_runner_takes_commands_in_order_and_knows_their_lines() -> None:
    commands = [(5, "run", "a \\\n  b   # c"), (8, "run", "d")]
    assert list(steps(A_PAGE)) == [*commands, (14, "x/y.py", "1\n"), (18, "python", "2\n")]


def test_the_readme_begins_with_the_two_commands() -> None:
    first = next(iter(steps((ROOT / "README.md").read_text("utf-8"))))
    assert first[1:] == ("run", "pip install -e . && noisebench leaderboard")


# --------------------------------------------------------------------------------------- what the site is made from


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("hooks")


def test_the_site_has_every_command_and_key_and_says_what_each_is(hooks: Any, caplog: pytest.LogCaptureFixture) -> None:
    commands, keys = hooks.command_line(), hooks.benchmark_keys()
    assert all(f"## noisebench {name}\n" in commands for name in app().commands)
    assert "- `--seeds" in commands
    assert "| `recipe.epochs` | int | `60` | passes over the training split |" in keys
    assert "| `seeds` | list of int | `[0, 1, 2]` |" in keys
    assert not caplog.records  # a key of which nothing says what it is


def test_a_notebook_becomes_a_page_with_its_outputs(hooks: Any, tmp_path: Path) -> None:
    outputs = [
        {"data": {"image/png": "QUJD\n", "text/plain": "<Figure>"}},
        {"data": {"text/html": "<table>\n\n</table>", "text/plain": "a table"}},
        {"name": "stdout", "text": ["some ", "text\n"]},
        {"name": "stderr", "text": "a bar"},
    ]
    cells = [{"cell_type": "markdown", "source": ["# Title"]}, {"cell_type": "code", "source": "1", "outputs": outputs}]
    file = tmp_path / "a.ipynb"
    file.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    page = hooks.notebook(file)
    assert page.startswith("# Title\n\n*This page is")
    assert "```python\n1\n```" in page
    assert 'base64,QUJD"' in page
    assert "<div><table>\n</table></div>" in page
    assert "```text\nsome text\n```" in page
    assert "a bar" not in page

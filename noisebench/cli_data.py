"""The commands `noisebench data verify` and `noisebench data prepare`: nothing heavy is imported before they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisebench._cli import DataRoot, Json, completes, console, fail
from noisebench.files import data_root_from

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.verifying import FileCheck, Verified

data_app = typer.Typer(help="Verify a dataset's files, or unpack what its publisher ships.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A dataset's name, or NAME:PATH.", autocompletion=completes("dataset"))]


@data_app.command()
def verify(name: Name, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Compare a dataset's files with their published checksums, then load it: counts, lists and order are checked.

    Where no checksum is published, the SHA-256 is shown, so that two places can compare theirs.
    """
    from noisebench import verifying

    root = data_root_from(data_root)
    with _progress():
        found = verifying.verify(name, root)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _show(found)
    if not found.ok:
        wrong = [file for file in found.files if file.failed]
        reason = f"{wrong[0].file} is {wrong[0].status}" if wrong else found.reason or "a further test cannot be read"
        fail(f"{name} failed verification: {reason}", 1)


@data_app.command()
def prepare(name: Name, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Unpack or convert once what a dataset's publisher ships; killed or failed, it leaves nothing half made."""
    from noisebench import verifying

    root = data_root_from(data_root)
    with _progress():
        found = verifying.prepare(name, root)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    elif found.done:
        print(f"{name} is prepared: {', '.join(found.done)}")
    elif not found.missing:
        print(f"{name}: there is nothing to unpack or to convert; noisebench data verify {name} checks what is there")
    if found.missing:
        files = f"{found.missing[0]} and {len(found.missing) - 1} more" if found.missing[1:] else found.missing[0]
        fail(f"{name}: {files} missing below {root}; get it from {found.source or 'its publisher'}", 1)


def show_datasets(rows: list[dict[str, Any]], terminal: Console) -> None:
    """A few lines a dataset, in any width: what it is, its size, its noise, its licence, where to get it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="datasets", title_style="bold", title_justify="left", box=None, show_header=False, pad_edge=False
    )
    table.add_column(no_wrap=True)
    for row in rows:
        name = f"{row['name']}:PATH" if row["takes_path"] else row["name"]
        table.add_row(Text(name, "bold cyan"), Text(row["summary"], "bold"))
        counts = [f"{count:,} {part}" for part, count in (row["size"] or {}).items()]
        several = ", several an image" if row["multilabel"] else ""
        for what, text in (
            ("images", " + ".join(counts)),
            ("classes", f"{row['classes']:,}{several}" if row["classes"] else ""),
            ("noise", row["noise"]),
            ("licence", row["licence"]),
            ("from", row["source"]),
            ("plug-in", "" if row["origin"] == "noisebench" else row["origin"]),
        ):
            if text:
                table.add_row(Text(f"  {what}", "dim"), Text(text))
    terminal.print(table)
    terminal.print()


def _show(found: Verified) -> None:
    """A line a file, as `noisebench check` shows its checks."""
    terminal = console()
    marks = {"ok": "[green]ok[/]  ", "unknown": "[yellow]?[/]   ", "not needed": "[dim]-[/]   "}

    def line(mark: str, text: str, detail: str) -> None:
        terminal.print(mark, end=" ")
        terminal.print(text, highlight=False, markup=False, soft_wrap=True)
        if detail:
            terminal.print(f"     {detail}", highlight=False, markup=False, soft_wrap=True)

    for file in found.files:
        line(marks.get(file.status, "[red]FAIL[/]"), file.file, _detail(file))
    if not found.files:
        line(marks["not needed"], "it has no files with a checksum", "")
    if found.holds:
        line(marks["ok"], f"loads: {found.holds}", "")
    else:
        line("[red]FAIL[/]", "does not load", found.reason)
    for test, reason in found.further.items():
        bad = marks["not needed"] if found.ok else "[red]FAIL[/]"
        line(bad if reason else marks["ok"], f"further test {test}", reason)
    if found.source and any(file.failed for file in found.files):
        line("    ", f"get it from {found.source}", "")


def _detail(file: FileCheck) -> str:
    if file.status == "changed":
        return f"MD5 {file.found} ({file.size:,} bytes), published is {file.published}; delete it and copy it anew"
    if file.status == "unknown" and file.found:
        return f"no checksum is published; SHA-256 {file.found}"
    if file.status == "not needed":
        return "is not there, and not needed"
    return file.reason or ("is missing" if file.status == "missing" else "")


@contextmanager
def _progress() -> Iterator[None]:
    """Shows on a terminal what takes long."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from noisebench.archives import progress_to

    terminal = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as shown:

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for earlier in tasks.values():
                    shown.update(earlier, visible=False)
                tasks[what] = shown.add_task(what)
            shown.update(tasks[what], completed=done, total=total or None)

        with progress_to(watch):
            yield

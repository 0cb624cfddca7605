"""What Jupyter shows while something runs; works with and without ipywidgets, in JupyterLab, VS Code and Colab."""

from __future__ import annotations

import secrets
import sys
import time
from html import escape
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.markup import render
from rich.progress import TaskID

_GAP = 0.2
"""Seconds between two looks: an epoch may take milliseconds."""


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this; IPython in a terminal is no notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def stream() -> Console:
    """Where lines go in a notebook: plain text below the cell, so that rich asks for no widgets."""
    return Console(file=sys.stdout, force_jupyter=False, force_terminal=False, color_system=None, width=120)


class Bar:
    """One bar below a cell, drawn anew in its place; takes the place of rich's `Progress` for one task."""

    disable = False

    def __init__(self) -> None:
        self._id = secrets.token_hex(8)
        self._total, self._done, self._fields = 1, 0, dict[str, Any]()
        self._running = self._shown = False
        self._began = self._drawn = 0.0

    def start(self) -> None:
        """Nothing is shown before there is a task."""

    def add_task(self, description: str, total: int, **fields: str) -> TaskID:
        """Show the bar."""
        self._title, self._total, self._fields = render(description).plain, total, fields
        self._began, self._running = time.monotonic(), True
        return TaskID(0)

    def update(self, task: TaskID, completed: int, **fields: str) -> None:
        """Show how far it is, at most a few times a second; `stop` shows the last."""
        self._done = completed
        self._fields |= fields
        if time.monotonic() - self._drawn >= _GAP:
            self._draw()

    def stop(self) -> None:
        """Leave how far it came; a second call does nothing."""
        if self._running:
            self._running = False
            self._fields |= {"to_go": "", "running": ""}
            self._draw()

    def _draw(self) -> None:
        from noisebench.progress import clock

        self._drawn = time.monotonic()
        fields = (render(self._fields.get(key, "")).plain for key in ("count", "to_go", "running"))
        count, *others = [text for text in fields if text] or [f"{self._done}/{self._total}"]
        text = " · ".join([count, clock(self._drawn - self._began), *others])
        bar = f'<progress value="{self._done}" max="{max(1, self._total)}" style="width: 14em"></progress>'
        html = f'<div class="noisebench"><b>{escape(self._title)}</b> {bar} {escape(text)}</div>'
        content = {"text/html": html, "text/plain": f"{self._title}: {text}"}
        show = import_module("IPython.display").display
        show(content, raw=True, display_id=self._id, update=self._shown)
        self._shown = True

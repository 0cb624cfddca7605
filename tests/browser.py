"""Headless Chromium for tests that open a page; they skip where it or playwright is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser here")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """A file opened in a browser, with all that it said and asked for.

    Attributes:
        page: playwright's.
        said: console messages and errors.
        asked: addresses that it asked for.
    """

    def __init__(self, browser: Any, file: Path, width: int = 1280, dark: bool = False) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def column(self, table: int, place: int) -> list[str]:
        """The texts of a column of the page's n-th sortable table, as they stand."""
        shown: list[str] = self.page.evaluate(
            "([table, place]) => [...document.querySelectorAll('table.sort')[table].querySelectorAll('tbody tr')]"
            ".map(row => (row.cells[place].querySelector('summary') || row.cells[place]).textContent.trim())",
            [table, place],
        )
        return [" ".join(text.split()) for text in shown]

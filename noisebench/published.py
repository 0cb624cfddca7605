"""The figures of a paper on a board: what `Benchmark.published` holds. `beside_paper` shows ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from noisebench._models import Model
from noisebench.errors import UserError, unknown
from noisebench.metrics import about

Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
Epoch = Literal["selected", "last", "best"]


class PublishedTable(Model):
    """Figures as a table of a paper has them: methods downwards, noise to the right.

    Attributes:
        dataset: one of the board's.
        metric: what the figures are of: a metric in % as a run reports it, e.g. ``top5``, or ``ilsvrc12.accuracy`` of a
            further test; by default what the column is judged by.
        noise: the labels of the board's noise that head the columns, e.g. ``symmetric 20% (incl. true)``.
        figures: label of a row -> "best" (what papers call best is the best test epoch, our best (oracle)), "last" or
            "selected" -> a figure in % for each of `noise`; null where the paper has none.
    """

    dataset: str
    metric: str = ""
    noise: tuple[str, ...] = Field(min_length=1)
    figures: dict[str, dict[Epoch, tuple[Percent | None, ...]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_percent(self) -> PublishedTable:
        metric = about(self.metric)
        if self.metric and not (metric and metric.percent):
            raise ValueError(f"metric: '{self.metric}' is no metric in %; give accuracy, gap, top5, or <test>.accuracy")
        return self

    @model_validator(mode="after")
    def _rectangular(self) -> PublishedTable:
        for method, by_epoch in self.figures.items():
            for epoch, figures in by_epoch.items():
                if len(figures) != len(self.noise):
                    raise ValueError(
                        f"figures.{method}.{epoch}: {len(figures)} for {len(self.noise)} columns of noise; give one "
                        "for each, and null where the paper has none"
                    )
        return self

    def items(self) -> Iterator[tuple[tuple[str, str, str, str, str], float]]:
        """(method, dataset, noise, epoch, metric) and the figure in %, for every figure."""
        for method, by_epoch in self.figures.items():
            for epoch, figures in by_epoch.items():
                for noise, figure in zip(self.noise, figures, strict=True):
                    if figure is not None:
                        yield (method, self.dataset, noise, epoch, self.metric), figure


class Published(Model):
    """What a paper published for a board. It is shown beside our figures and judges none of them.

    Attributes:
        source: authors, title, venue, the numbers of the tables.
        note: what a reader must know to compare.
        tables: the figures; none may be given twice.
    """

    source: str = Field(min_length=1)
    note: str = ""
    tables: tuple[PublishedTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> Published:
        seen = set()
        for table in self.tables:
            for place, _ in table.items():
                if place in seen:
                    raise ValueError(f"tables: two figures for {' / '.join(filter(None, place))}; give one")
                seen.add(place)
        return self

    def figures(self) -> dict[tuple[str, str, str, str, str], float]:
        """(method, dataset, noise, epoch, metric) -> the figure in %; an empty metric is the column's score."""
        return {place: figure for table in self.tables for place, figure in table.items()}

    def check(self, methods: Iterable[str], datasets: Iterable[str], noise: Iterable[str]) -> None:
        """Refuse a row or a column that the board does not have.

        Raises:
            UserError: with its place in the file and the nearest names.
        """
        known = {"figures": tuple(methods), "dataset": tuple(datasets), "noise": tuple(noise)}
        for i, table in enumerate(self.tables):
            for key, names in {"dataset": [table.dataset], "noise": table.noise, "figures": table.figures}.items():
                for name in names:
                    if name not in known[key]:
                        raise unknown(f"published.tables[{i}].{key}: the board's", name, known[key])
            if len(set(table.noise)) < len(table.noise):
                raise UserError(f"published.tables[{i}].noise: a column is listed twice")

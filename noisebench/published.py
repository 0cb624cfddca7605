"""The figures of a paper on a board: what `Benchmark.published` holds. `beside_paper` shows ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from noisebench._models import Model
from noisebench.errors import UserError, unknown
from noisebench.metrics import METRICS, about

Figure = Annotated[float, Field(strict=True, ge=0)]
Epoch = Literal["selected", "last", "best"]
Figures = dict[str, dict[Epoch, tuple[Figure | None, ...]]]


class Place(NamedTuple):
    """Where a figure stands; an empty metric is the column's score."""

    method: str
    dataset: str
    noise: str
    epoch: str
    metric: str


class Entry(NamedTuple):
    """A figure as the paper has it, its sd and the number of runs; None where the paper does not say."""

    value: float
    sd: float | None = None
    runs: int | None = None


class PublishedTable(Model):
    """Figures as a table of a paper has them: methods downwards, noise to the right.

    Attributes:
        dataset: one of the board's, or of `Published.not_here`.
        metric: what the figures are of: a metric as a run reports it, e.g. ``top5`` or ``nll``, or
            ``ilsvrc12.accuracy`` of a further test; by default what the column is judged by.
        noise: the labels of the board's noise that head the columns, e.g. ``symmetric 20% (incl. true)``.
        figures: label of a row -> "best" (what papers call best is the best test epoch, our best (oracle)), "last" or
            "selected" -> a figure for each of `noise`, in % where the metric is a share and else as it is (NLL in
            nats); null where the paper has none.
        sd: the standard deviations of figures, in the same places.
        runs: of how many runs the figures with an sd are the mean; null where the paper does not say.
    """

    dataset: str
    metric: str = ""
    noise: tuple[str, ...] = Field(min_length=1)
    figures: Figures = Field(min_length=1)
    sd: Figures = Field(default={})
    runs: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _known(self) -> PublishedTable:
        if self.metric and about(self.metric) is None:
            raise ValueError(f"metric: '{self.metric}' is no metric; give one of {', '.join(METRICS)}, or <test>.<one>")
        return self

    @model_validator(mode="after")
    def _rectangular(self) -> PublishedTable:
        for key, rows in (("figures", self.figures), ("sd", self.sd)):
            for method, by_epoch in rows.items():
                for epoch, figures in by_epoch.items():
                    where = f"{key}.{method}.{epoch}"
                    if len(figures) != len(self.noise):
                        raise ValueError(
                            f"{where}: {len(figures)} for {len(self.noise)} columns of noise; give one for each, and "
                            "null where the paper has none"
                        )
                    for i, figure in enumerate(figures):
                        if figure is not None and figure > 100 and in_percent(self.metric):
                            raise ValueError(f"{where}.{i}: {figure}: should be less than or equal to 100 (%)")
                        if key == "sd" and figure is not None and self._figure(method, epoch, i) is None:
                            raise ValueError(f"{where}.{i}: there is no such figure; give null")
        return self

    def _figure(self, method: str, epoch: Epoch, i: int) -> float | None:
        return self.figures.get(method, {}).get(epoch, (None,) * len(self.noise))[i]

    def items(self) -> Iterator[tuple[Place, Entry]]:
        """Every figure with its place."""
        nothing = (None,) * len(self.noise)
        for method, by_epoch in self.figures.items():
            for epoch, figures in by_epoch.items():
                spread = self.sd.get(method, {}).get(epoch, nothing)
                for noise, figure, sd in zip(self.noise, figures, spread, strict=True):
                    if figure is not None:
                        entry = Entry(figure, sd, None if sd is None else self.runs)
                        yield Place(method, self.dataset, noise, epoch, self.metric), entry


class Published(Model):
    """What a paper published for a board. It is shown beside our figures and judges none of them.

    Attributes:
        source: authors, title, venue, the numbers of the tables.
        note: what a reader must know to compare.
        not_here: rows and datasets of the tables that the board cannot have, and why; shown as not run.
        tables: the figures; none may be given twice.
    """

    source: str = Field(min_length=1)
    note: str = ""
    not_here: dict[str, Annotated[str, Field(min_length=1)]] = Field(default={})
    tables: tuple[PublishedTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> Published:
        seen = set()
        for table in self.tables:
            for place, _ in table.items():
                if place in seen:
                    raise ValueError(f"tables: two figures for {' / '.join(filter(None, place))}; give one")
                seen.add(place)
        used = {name for table in self.tables for name in (table.dataset, *table.figures)}
        for name in self.not_here:
            if name not in used:
                raise unknown("not_here: no row or dataset of the tables:", name, used)
        return self

    def entries(self) -> dict[Place, Entry]:
        """Every figure by its place."""
        return {place: entry for table in self.tables for place, entry in table.items()}

    def figures(self) -> dict[Place, float]:
        """Every figure by its place, without its sd."""
        return {place: entry.value for place, entry in self.entries().items()}

    def check(self, methods: Iterable[str], datasets: Iterable[str], noise: Iterable[str]) -> None:
        """Refuse a row or a column that the board does not have, and a reason for the lack of one that it has.

        Raises:
            UserError: with its place in the file and the nearest names.
        """
        known = {"figures": tuple(methods), "dataset": tuple(datasets), "noise": tuple(noise)}
        for name in self.not_here:
            if name in (*known["figures"], *known["dataset"]):
                raise UserError(f"published.not_here: the board has '{name}'; give its figures alone")
        for i, table in enumerate(self.tables):
            for key, names in {"dataset": [table.dataset], "noise": table.noise, "figures": table.figures}.items():
                for name in names:
                    free = table.dataset in self.not_here if key == "noise" else name in self.not_here
                    if not free and name not in known[key]:
                        raise unknown(f"published.tables[{i}].{key}: the board's", name, known[key])
            if len(set(table.noise)) < len(table.noise):
                raise UserError(f"published.tables[{i}].noise: a column is listed twice")


def in_percent(metric: str) -> bool:
    """Whether figures of a metric are in %; those of a score are."""
    found = about(metric)
    return found is None or found.percent

"""A board's report and MLflow: where its runs are shown, and the report as an artefact of the board's own run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from noisebench._reaching import Silent, rules_of, shown, sqlite_file, store_uri
from noisebench.errors import UserError
from noisebench.files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass
class BoardRun:
    """The run of a board in MLflow, as far as the store answers.

    Attributes:
        uri: the store's address; it may hold a password.
        said: why there is no such run, in one line; "" where there is one.
        run, experiment: their ids; "" where there is none.
    """

    uri: str
    out: Path
    board: str
    said: str = ""
    run: str = ""
    experiment: str = ""
    _client: MlflowClient | None = field(default=None, repr=False)

    @property
    def page(self) -> str:
        """The address of the board's run in MLflow's pages; "" where the store is no server."""
        return self._page(self.run)

    def page_of(self, folder: str) -> str:
        """The address of a cell's run, by what its folder says was sent; "" where there is none."""
        sent = read_json(self.out / folder / f"sent-{self.board}.json") if folder and self.page else None
        return self._page(str(sent["run_id"])) if sent and sent.get("run_id") else ""

    def _page(self, run: str) -> str:
        if not (run and self.experiment and re.match(r"https?://", self.uri)):
            return ""
        return f"{shown(self.uri).rstrip('/')}/#/experiments/{self.experiment}/runs/{run}"

    def log(self, files: Sequence[Path]) -> str:
        """Log files as artefacts of the run; what became of them, in one line."""
        if self._client is None:
            return self.said
        try:
            for file in files:
                self._client.log_artifact(self.run, str(file))
        except Exception as error:
            return f"MLflow could not be written: {_one_line(error)}"
        return "MLflow: logged to the board's run"


def find_board(out: Path, board: str) -> BoardRun:
    """Look for the run of a board; never raises. A store that does not answer takes some seconds."""
    found = BoardRun(store_uri(out), out, board)
    file = sqlite_file(found.uri)
    if file is not None and not file.is_file():  # MLflow would create it
        found.said = "MLflow: there is no store of this board; noisebench sync makes one"
        return found
    try:
        rules_of(found.uri, f"noisebench/{board}")  # seconds where nothing answers; MLflow itself would try for longer
        from noisebench._store import open_client

        client = open_client(found.uri, timeout=30)
        named = client.get_experiment_by_name(f"noisebench/{board}")
        where = "tags.`noisebench.kind` = 'board'"
        runs = client.search_runs([named.experiment_id], where, max_results=1) if named else []
    except Silent as silent:
        found.said = str(silent)
    except UserError as error:
        found.said = f"MLflow: {error}"
    except Exception as error:
        found.said = f"MLflow could not be read: {_one_line(error)}"
    else:
        if runs:
            found.experiment, found.run, found._client = runs[0].info.experiment_id, runs[0].info.run_id, client
        else:
            found.said = "MLflow has no run of this board; noisebench sync sends it"
    return found


def _one_line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()))[:200] or type(error).__name__

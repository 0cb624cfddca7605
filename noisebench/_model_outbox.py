"""The models of a board as a part of its outbox: which of them MLflow lacks, and the sending of those."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebench._deploying import Group, NoModel, best_of, groups, register_as, stage
from noisebench._describing import literal
from noisebench._run_folder import cut, load
from noisebench.files import write_json

if TYPE_CHECKING:
    from noisebench._store import Store, StoredRun


class ModelOutbox:
    """What of a board's models is acknowledged, in ``sent-models.json``; the lock of the board's outbox guards it.

    Args:
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``; folder: the board's.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self.out, self.file = out, folder / "sent-models.json"

    def _read(self, store: str) -> dict[str, Any]:
        found = load(self.file)
        return found if found.get("store") == store else {"store": store, "groups": {}, "models": {}, "aliases": {}}

    def models(self, store: str) -> dict[str, dict[str, Any]]:
        """Fingerprint -> what was logged of it: its run, "uri", "epoch", ..., or the "reason" why there is none."""
        found: dict[str, dict[str, Any]] = self._read(store)["models"]
        return found

    def work(
        self, board: Mapping[str, Any], finals: Mapping[str, str], store: str, runs: Mapping[str, Any] | None = None
    ) -> list[Group]:
        """The groups of finished cells whose model is to be sent.

        Args:
            board: its board.json; finals: fingerprint -> hash of what the cell ended with.
            store: names the store.
            runs: those that the store has; a model of another is to be sent again.
        """
        ack = self._read(store)
        gone = {
            fingerprint
            for fingerprint, model in ack["models"].items()
            if runs is not None and model.get("run_id") not in runs
        }

        def is_done(group: Group) -> bool:
            known = ack["groups"].get(group.key, {})
            return known.get("of") == group.of and known.get("fingerprint") not in gone

        return [group for group in groups(board, finals) if not is_done(group)]

    def send(
        self,
        group: Group,
        store: Store,
        identity: str,
        board: Mapping[str, Any],
        run_of: Callable[[dict[str, Any]], StoredRun | None],
    ) -> dict[str, Any] | None:
        """Log the model of a group, register it where the board says so, and note that; the cell that it is of.

        None where the group has no finished cell, or that cell's run is not in the store yet.
        """
        cell, score = best_of(group.cells, self.out)
        ack = self._read(identity)
        if cell is not None:
            run = run_of(cell)
            if run is None:
                return None
            try:
                model = self._log(cell, score, store, board, run)
            except NoModel as none:
                model = {"reason": str(none), "run_id": run.id}
            ack["models"][cell["fingerprint"]] = model
        ack["groups"][group.key] = {"of": group.of, "fingerprint": cell and cell["fingerprint"]}
        write_json(self.file, ack)
        return cell

    def _log(
        self, cell: dict[str, Any], score: float | None, store: Store, board: Mapping[str, Any], run: StoredRun
    ) -> dict[str, Any]:
        from noisebench._model_store import log_model, register
        from noisebench.config import slugify

        if not run.alive:
            raise NoModel("its run was deleted in MLflow")
        config, result = load(self.out / cell["folder"] / "config.json"), self.out / cell["folder"] / "result.json"
        column = f"{cell['dataset']}, {cell['noise']}"
        tags = {key: str(cell[key]) for key in ("method", "label", "dataset", "noise", "seed", "fingerprint")}
        tags |= {"board": board["name"], "privileged": ", ".join(config.get("privileged") or ()) or "no"}
        work = Path(tempfile.mkdtemp(prefix="noisebench-model-"))
        try:
            staged = stage(cell, self.out, work / "model" / "data")
            about = staged.about
            tags |= {"epoch": str(about["epoch"]), "which": about["which"]}
            told = f"{literal(about['title'])}; weights of epoch {about['epoch']} ({about['which']})"
            told += "" if score is None else f"; {score:.4f} on the noisy validation split"
            told = cut(told, 500)
            name = slugify(f"{cell['label']}-{cell['dataset']}-{cell['noise']}-s{cell['seed']}")
            described = tags | {"mlflow.note.content": told}
            model = log_model(store, run, staged, name, described, int(result.stat().st_mtime * 1000))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        channels, height, width = about["inputs"]["image_shape"]
        found: dict[str, Any] = {
            "run_id": run.id,
            "uri": f"models:/{model}",
            "label": cell["label"],
            "column": column,
            "which": about["which"],
            "epoch": about["epoch"],
            "score": score,
            "input": [height, width, channels],
            "classes": about["inputs"]["num_classes"],
            "privileged": bool(config.get("privileged")),
        }
        if asked := register_as(board):
            title = f"Models of the noisebench board {literal(board.get('title') or board['name'])}"
            version = register(store.client, asked, model, run.id, tags, told, title)
            found |= {"registered": f"models:/{asked}/{version}", "version": version}
        return found

    def set_aliases(self, store: Store, identity: str, board: Mapping[str, Any]) -> None:
        """Let ``best-DATASET-NOISE``, and ``best`` where there is one column, name the best registered model.

        By the noisy validation split, and among methods that were given nothing beyond noisy labels.
        """
        from noisebench._model_store import alias_of, set_alias

        name, ack = register_as(board), self._read(identity)
        if name is None:
            return
        best: dict[str, dict[str, Any]] = {}
        for model in ack["models"].values():
            is_ours = str(model.get("registered", "")).startswith(f"models:/{name}/")
            if is_ours and model["score"] is not None and not model["privileged"]:
                known = best.setdefault(model["column"], model)
                best[model["column"]] = model if model["score"] > known["score"] else known
        wanted = {alias_of("best", column): model["version"] for column, model in best.items()}
        if len({(cell["dataset"], cell["noise"]) for cell in board["cells"]}) == 1 and wanted:
            (wanted["best"],) = wanted.values()
        for alias, version in wanted.items():
            if ack["aliases"].get(f"{name}@{alias}") != version:
                set_alias(store.client, name, alias, version)
                ack["aliases"][f"{name}@{alias}"] = version
                write_json(self.file, ack)

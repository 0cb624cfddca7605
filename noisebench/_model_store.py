"""A model in an MLflow store, once: logged as an output of its run, and a version in the registry where that is asked.

Whatever MLflow raises comes through, and the same call goes on from there: a model that was begun is looked up by its
run before another is made, and of two that were made at the same time one stays.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebench._deploying import NoModel, Staged
from noisebench._run_folder import NAME_LIMIT, key_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

    from noisebench._store import Store, StoredRun

LOADER = "noisebench.mlflow_model"
_VERSIONS = "mlflow.modelVersions"  # the tag by which MLflow's pages find the versions of a model


def log_model(store: Store, run: StoredRun, staged: Staged, name: str, tags: Mapping[str, str], ended: int) -> str:
    """Log a run's model where that is not done yet; its id.

    Args:
        staged: its data, in a folder that becomes MLflow's.
        name: shown in the list of models.
        tags: to filter by.
        ended: time stamp of its metrics in ms: those of its run.

    Raises:
        NoModel: the server keeps none.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        found = _of_run(client, store.experiment, run.id)
    except MlflowException as error:
        if error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):  # no failure: it would be one for ever
            raise NoModel("the MLflow server is older than 3.0, which was the first to keep models of a run") from None
        raise
    is_new = not found
    if is_new:
        client.create_logged_model(store.experiment, _plain(name), run.id, dict(tags), {}, "image classifier")
        found = _of_run(client, store.experiment, run.id)  # another process may have made one meanwhile
    model, *doubles = found
    for double in doubles:
        client.delete_logged_model(double.model_id)
    if model.status != LoggedModelStatus.READY:
        folder = _complete(staged, model, run.id)
        client.log_model_artifacts(model.model_id, str(folder))
        epoch, rule = staged.about["epoch"], staged.about["which"]
        client.log_batch(  # the points that the run has, now of its model too
            run.id,
            [
                Metric(key_name(f"{rule}.{key}"), value, ended, epoch, model_id=model.model_id, run_id=run.id)
                for key, value in staged.metrics.items()
            ],
        )
        outputs = None if is_new else client.get_run(run.id).outputs
        if model.model_id not in {one.model_id for one in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(run.id, [LoggedModelOutput(model.model_id, epoch)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _of_run(client: MlflowClient, experiment: str, run: str) -> list[LoggedModel]:
    """The models of a run, the one that stays first, whoever looks."""
    found = client.search_logged_models([experiment], f"source_run_id = '{run}'")
    return sorted(found, key=lambda one: str(one.model_id))


def _plain(name: str) -> str:
    """A name as MLflow takes it for a model."""
    return "".join("_" if char in "/:.%\"'" else char for char in name)[:NAME_LIMIT]


def _complete(staged: Staged, model: LoggedModel, run: str) -> Path:
    """Write what MLflow wants beside the data: the file MLmodel, and what must be installed; the model's folder."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    facts, folder = staged.about["inputs"], staged.folder.parent
    channels, height, width = facts["image_shape"]
    made = Model(
        artifact_path=model.artifact_location,
        run_id=run,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, facts["num_classes"]))]),
        ),
        metadata={"noisebench": {key: staged.about[key] for key in ("title", "which", "epoch", "fingerprint")}},
    )
    environment = _environment(tuple(staged.requirements))
    for name, content in environment.items():
        (folder / name).write_bytes(content)
    mlflow.pyfunc.add_to_model(
        made,
        loader_module=LOADER,
        data=staged.folder.name,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    made.save(str(folder / "MLmodel"))
    return folder


@lru_cache(maxsize=4)
def _environment(requirements: tuple[str, ...]) -> dict[str, bytes]:
    """MLflow's files that say what to install, by name; making them takes longer than all the rest of a model."""
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory(prefix="noisebench-model-") as work:
        folder = Path(work, "model")
        mlflow.pyfunc.save_model(str(folder), loader_module=LOADER, pip_requirements=list(requirements))
        return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "MLmodel" and file.is_file()}


# -------------------------------------------------------------------------------------------------------- registry


def register(
    client: MlflowClient, name: str, model_id: str, run: str, tags: Mapping[str, str], description: str, about: str
) -> str:
    """Make a logged model a version of a registered one, where it is none yet; the version.

    Args:
        name: of the registered model, made where it is missing; about: its description then.
        description: of the version; tags: of the version.
    """
    found = _versions(client, name, run, model_id)
    if not found:
        with suppress(Exception):  # it is there, or the next call tells what is wrong
            client.create_registered_model(name, description=about)
        client.create_model_version(
            name,
            client.get_logged_model(model_id).artifact_location,  # models:/ would be sought in the global store
            run,
            dict(tags),
            description=description,
            await_creation_for=0,
            model_id=model_id,
        )
        found = _versions(client, name, run, model_id)
    for double in found[1:]:
        client.delete_model_version(name, str(double.version))
    version = str(found[0].version)
    known = json.loads(client.get_logged_model(model_id).tags.get(_VERSIONS, "[]"))
    if version not in [str(one["version"]) for one in known if one["name"] == name]:
        known.append({"name": name, "version": version})
        client.set_logged_model_tags(model_id, {_VERSIONS: json.dumps(known)})
    return version


def _versions(client: MlflowClient, name: str, run: str, model_id: str) -> list[ModelVersion]:
    found = client.search_model_versions(f"run_id = '{run}'")
    same = [one for one in found if one.name == name and model_id in (one.model_id, *(one.source or "").split("/"))]
    return sorted(same, key=lambda one: int(one.version))


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Let an alias name a version: ``models:/NAME@ALIAS``."""
    client.set_registered_model_alias(name, alias, version)


def alias_of(*words: Any) -> str:
    """Words as MLflow takes them for an alias."""
    alias = "-".join("".join(char if char.isascii() and char.isalnum() else "-" for char in str(w)) for w in words)
    return "-".join(filter(None, alias.split("-")))[:NAME_LIMIT]

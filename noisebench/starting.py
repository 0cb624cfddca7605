"""A backbone that begins with what a finished run learned, whatever its method was (`recipe.start`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisebench.config import Recipe
from noisebench.errors import UserError
from noisebench.files import read_json


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def start_from(backbone: nn.Module, recipe: Recipe, image_shape: tuple[int, int, int]) -> None:
    """Give a new backbone the weights of the one in `recipe.start`, running statistics of its BatchNorm included.

    The backbone of a run is found by the names of its weights, so that neither its method nor its data are needed: it
    is the first module of the method that has all the names of `backbone`. Of a method with several backbones (an
    ensemble, two networks that teach each other) that is the one it made first.

    Args:
        backbone: of the kind that `recipe` names; its weights are overwritten.
        recipe: with `start`; without one nothing is done.
        image_shape: (C, H, W) of the images that it is for, for messages.

    Raises:
        UserError: no finished run there, other weights than `start` names, another kind of backbone, none that can be
            found, or one that does not take such images.
    """
    if recipe.start is None:
        return
    folder = Path(recipe.start.run)
    config, state = _read(folder, recipe.start.weights)
    then = config["recipe"]
    if (then["backbone"], then["backbone_options"]) != (recipe.backbone, _plain(recipe.backbone_options)):
        raise UserError(
            f"recipe.start: {folder.name} has the backbone {then['backbone']} {then['backbone_options']}, and this "
            f"recipe {recipe.backbone} {recipe.backbone_options}; they must be the same"
        )
    own = backbone.state_dict()
    prefix = _prefix_of(list(own), state)
    if prefix is None:
        raise UserError(
            f"recipe.start: {folder.name}: no module of {config['method']} has the weights of a {recipe.backbone}, so "
            "that there is nothing to begin with"
        )
    found = {name: state[prefix + name] for name in own}
    for name, value in own.items():
        if value.shape != found[name].shape:
            raise UserError(
                f"recipe.start: the {recipe.backbone} of {folder.name} does not take images of "
                f"{'x'.join(map(str, image_shape))} (channels first): its {name} is {list(found[name].shape)}, and "
                f"{list(value.shape)} would be needed"
            )
    backbone.load_state_dict(found)


def _read(folder: Path, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the weights of a finished run."""
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    if config is None or result is None:
        raise UserError(f"recipe.start: {folder}: no finished run (config.json and result.json)")
    try:
        state: dict[str, Tensor] = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"recipe.start: {folder / 'model.pt'} is missing; remove the folder and run it again") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"recipe.start: {folder / 'model.pt'} cannot be read: {type(error).__name__}") from None
    if sha256_of_state(state) != weights:
        raise UserError(f"recipe.start: {folder / 'model.pt'} holds other weights than {weights[:12]}..., as was asked")
    return config, state


def _prefix_of(names: list[str], state: Mapping[str, Tensor]) -> str | None:
    """The first prefix under which `state` has all of `names`; modules are listed in the order they were made in."""
    ends = names[0]
    prefixes = [name.removesuffix(ends) for name in state if name == ends or name.endswith(f".{ends}")]
    return next((prefix for prefix in prefixes if all(prefix + name in state for name in names)), None)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they stand in a JSON file."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}

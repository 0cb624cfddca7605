"""Labels that came with a dataset: which of them noise takes, and what is refused where nobody knows the true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from noisebench.image_data import ImageData


def check_given(kind: str, given: object, data: ImageData, dataset: str) -> str | None:
    """The name of the dataset's labels that noise takes; None where it takes none of them.

    Args:
        kind: of the noise; given: its option `given`.
        data: the dataset; dataset: its name, for messages.

    Raises:
        UserError: the dataset has no such labels, or its true ones are not known and the noise would need them.
    """
    if not data.clean_known:
        if kind != "real" or given is not None:
            raise UserError(
                f"the training labels of '{dataset}' are real noise themselves; give noise real, without given"
            )
        return None
    if kind not in ("real", "matched"):
        return None
    if not data.given_labels:
        raise UserError(f"noise {kind}: dataset '{dataset}' came without noisy labels; give another kind of noise")
    if given is None and len(data.given_labels) == 1:
        return next(iter(data.given_labels))
    if not isinstance(given, str):
        raise UserError(f"noise {kind}: given: say which of '{dataset}': {', '.join(data.given_labels)}")
    if given not in data.given_labels:
        raise unknown(f"noise {kind}: given", given, data.given_labels)
    return given


def with_given(kind: str, options: dict[str, Any], data: ImageData, dataset: str) -> tuple[dict[str, Any], str | None]:
    """The noise's options with the labels themselves in the place of their name, and that name.

    Raises:
        UserError: as `check_given`.
    """
    name = check_given(kind, options.get("given"), data, dataset)
    return (options if name is None else {**options, "given": data.given_labels[name]}), name

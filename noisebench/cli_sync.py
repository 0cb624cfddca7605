"""The command `noisebench sync`: nothing heavy is imported before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisebench._cli import DEFAULT_OUT, Json, Out, console, fail
from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from noisebench._sending import Pending
    from noisebench.tracking import Sender

SYNC_HELP = """Send to MLflow what the boards in --out have not sent yet.

A board that runs does so by itself. This is for what is left afterwards: MLflow did not answer, or the driver, a node \
or the whole machine died. Whatever is there already is not sent again. It goes where MLFLOW_TRACKING_URI points to, \
else to the SQLite file in --out.

For example:

noisebench sync

noisebench sync digits cifar10-small --out /shared/runs""".replace("\\\n", "")


def sync(
    boards: Annotated[list[str] | None, typer.Argument(help="Names of boards; all in --out by default.")] = None,
    out: Out = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Send to MLflow what the boards in --out have not sent yet."""
    known = sorted(file.parent.name for file in out.glob("boards/*/board.json"))
    if not known:
        raise UserError(f"--out {out}: there is no board (boards/*/board.json)")
    for name in boards or ():
        if name not in known:
            raise unknown(f"--out {out}: board", name, known)
    from noisebench import tracking

    found = []
    for name in dict.fromkeys(boards or known):
        sender = tracking.Sender(tracking.store_uri(out), out.absolute(), name)
        pending = sender.sync_to_the_end()
        sender.close()
        found.append(_said(sender, pending, out))
        if not as_json:
            console().print(f"{name}: {found[-1]['said']}", markup=False, highlight=False, soft_wrap=True)
    left = [row["board"] for row in found if not row["complete"]]
    if as_json:
        print(json.dumps(found, indent=1))
    if left:
        fail(f"not everything could be sent ({', '.join(left)}); run noisebench sync again", 1)


def _said(sender: Sender, pending: Pending, out: Path) -> dict[str, Any]:
    from noisebench._reaching import shown, store_uri

    count = len(sender.sent_cells)
    sent = f"sent {count} cell{'s' * (count > 1)} to {shown(store_uri(out))}" if count else ""
    said = "; ".join(filter(None, (sent, str(pending)))) or "everything was sent before"
    return {
        "board": sender.board,
        "complete": not pending,
        "sent_cells": count,
        "unsent_cells": pending.cells,
        "reason": pending.reason,
        "said": said,
    }

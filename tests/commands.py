"""The command line within a test's own process."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

from noisebench import cli


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def noisebench(*argv: str | Path) -> Ran:
    """The command as the shell starts it, through `main`, but in this process; any traceback is the test's."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["noisebench", *map(str, argv)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return Ran(int(code), out.getvalue(), err.getvalue())

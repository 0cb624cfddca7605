"""Is the MLflow store there, does it let us in, under whose rules was the board written? Imports no MLflow.

Asked before the first cell of a board starts. What can only be a mistake is an error there; a store that does not
answer is none: training goes on without it.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import importlib.util
import json
import netrc
import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from noisebench.errors import UserError
from noisebench.files import read_json

RULES_TAG = "noisebench.rules"
"""The tag of an experiment that says under which rules its newest runs were made."""
_TIMEOUT = 5  # seconds
_RULES_QUERY = (
    "SELECT experiment_tags.value FROM experiment_tags JOIN experiments "
    "ON experiments.experiment_id = experiment_tags.experiment_id "
    f"WHERE experiment_tags.key = '{RULES_TAG}' AND experiments.name = "
)


def store_uri(out: Path) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else an SQLite file in `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"


def shown(text: str) -> str:
    """An address, or a text with one in it, without the user and the password that it may hold."""
    return re.sub(r"//\S+@", "//", text)


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for every other store."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return None if match is None or match[1] == ":memory:" else Path(match[1])


def with_driver(uri: str) -> str:
    """``postgresql://`` with the driver that is installed: which of them SQLAlchemy takes depends on its version.

    Raises:
        UserError: none is installed.
    """
    scheme, colon, rest = uri.partition("://")
    if not colon or scheme not in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        return uri
    _, _, asked = scheme.partition("+")
    found = [name for name in ("psycopg2", "psycopg") if asked in ("", name) and importlib.util.find_spec(name)]
    if not found:
        raise UserError(
            f"MLFLOW_TRACKING_URI: PostgreSQL needs {asked or 'psycopg2'}; pip install 'noisebench[postgres]', "
            "or give the address of an MLflow server"
        )
    return f"postgresql+{found[0]}://{rest}"


class Silent(Exception):
    """The store does not answer."""

    def __init__(self, uri: str, instead: object) -> None:
        """`instead`: what came in place of an answer."""
        super().__init__(f"MLflow at {shown(uri)} does not answer ({shown(' '.join(str(instead).split()))})")


def rules_of(uri: str, experiment: str) -> int:
    """The rules' version that the store gives for an experiment; 0 where there is no such experiment, or no tag.

    Raises:
        UserError: an address that holds no MLflow, or one that refuses the user, the password or the token.
        Silent: the store does not answer.
    """
    file = sqlite_file(uri)
    if file is not None:
        found = _ask_sqlite(file, experiment)
    elif uri.startswith("postgresql"):
        found = _ask_postgres(uri, experiment)
    elif re.match(r"https?://", uri):
        found = _ask_server(uri, experiment)
    else:
        found = None
    return int(found) if found and found.isdecimal() else 0


def check_rules(uri: str, board: str) -> None:
    """Refuse a board whose newest runs in the store were made under newer rules than these.

    Raises:
        UserError: it has such runs; or as `rules_of`.
        Silent: the store does not answer.
    """
    from noisebench.config import RULES

    found = rules_of(uri, f"noisebench/{board}")
    if found > RULES:
        raise UserError(
            f"MLflow at {shown(uri)} holds the board '{board}' under rules {found}, and this noisebench has {RULES}: "
            "update noisebench, or give the board another name (--set name=...) or another store (MLFLOW_TRACKING_URI)"
        )


def check_store(out: Path, board: str) -> str | None:
    """Ask once, before the first cell of a board, whether its records can be written: to its folder and to MLflow.

    Imports no MLflow; takes 5 seconds at most, and milliseconds where the store answers.

    Args:
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``.
        board: the board's name.

    Returns:
        None, or one line for the user where the store does not answer: training goes on without it.

    Raises:
        UserError: a wrong address, user, password or token; a driver that is not installed; a board that a newer
            version of noisebench wrote under other rules.
    """
    check_folder(out, board)
    uri = store_uri(out)
    try:
        check_rules(uri, board)
    except Silent as silent:
        return f"{silent}: training goes on; the points are sent when it is back, or by noisebench sync"
    return None


def check_folder(out: Path, board: str) -> None:
    """Refuse to go on with a board that a newer version of noisebench wrote there under other rules.

    Raises:
        UserError: it did.
    """
    from noisebench.config import RULES

    file = out / "boards" / board / "board.json"
    found = max((cell.get("rules", 0) for cell in (read_json(file) or {}).get("cells", [])), default=0)
    if found > RULES:
        raise UserError(
            f"{file} was written under rules {found}, and this noisebench has {RULES}: update noisebench, or give "
            "another --out"
        )


# ------------------------------------------------------------------------------------------------------ databases


def _ask_sqlite(file: Path, experiment: str) -> str | None:
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT)) as database:
            row = database.execute(f"{_RULES_QUERY}?", (experiment,)).fetchone()
    except sqlite3.OperationalError:  # locked, or not set up by MLflow yet
        return None
    except sqlite3.DatabaseError as error:
        raise UserError(f"MLFLOW_TRACKING_URI: {file}: {error}") from None
    return None if row is None else str(row[0])


def _ask_postgres(uri: str, experiment: str) -> str | None:
    scheme, _, rest = with_driver(uri).partition("://")
    driver: Any = importlib.import_module(scheme.partition("+")[2])
    try:
        with closing(driver.connect(f"postgresql://{rest}", connect_timeout=_TIMEOUT)) as database:
            with closing(database.cursor()) as cursor:
                cursor.execute("SELECT to_regclass('experiment_tags')")
                if cursor.fetchone()[0] is None:  # an empty database: MLflow sets it up at its first start
                    return None
                cursor.execute(f"{_RULES_QUERY}%s", (experiment,))
                row = cursor.fetchone()
    except driver.OperationalError as error:
        text = shown(" ".join(str(error).split()))
        if re.search(r"authentication failed|password|does not exist|no pg_hba", text):
            raise UserError(f"MLFLOW_TRACKING_URI: {text}") from None
        raise Silent(uri, text) from None
    except driver.Error as error:  # no right to read, say; or an address that is none
        raise UserError(f"MLFLOW_TRACKING_URI: {shown(' '.join(str(error).split()))}") from None
    return None if row is None else str(row[0])


# -------------------------------------------------------------------------------------------------------- servers


def _ask_server(uri: str, experiment: str) -> str | None:
    address = urllib.parse.urlsplit(uri)
    plain = shown(uri).rstrip("/")
    query = urllib.parse.urlencode({"experiment_name": experiment})
    headers, who = _credentials(address)
    try:
        request = urllib.request.Request(
            f"{plain}/api/2.0/mlflow/experiments/get-by-name?{query}", headers={"Accept": "application/json", **headers}
        )
        status, body = _answer(request)
    except (ValueError, http.client.InvalidURL) as error:  # a port that is no number
        raise UserError(f"MLFLOW_TRACKING_URI: {plain}: {error}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Silent(uri, getattr(reason, "strerror", None) or reason) from None
    except http.client.HTTPException:
        raise UserError(f"MLFLOW_TRACKING_URI: {plain} is no MLflow server (it does not speak HTTP)") from None
    if status == 401:
        if os.environ.get("MLFLOW_TRACKING_AUTH") or os.environ.get("MLFLOW_TRACKING_AWS_SIGV4"):
            return None  # the sender signs, and this question did not
        wanted = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        told = f"refuses {who} (401); correct it" if who else f"asks who we are (401); set {wanted}"
        raise UserError(f"MLflow at {plain} {told}")
    found = _json(body)
    if status == 403:
        why = found.get("message") or body.decode(errors="replace").strip()[:150] or "no reason given"
        raise UserError(f"MLflow at {plain} does not let {who or 'us'} at '{experiment}' (403): {why}")
    if status >= 500 or status in (408, 429):
        raise Silent(uri, f"status {status}")
    if status == 404 and found.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return None
    tags = found.get("experiment", {}).get("tags", []) if status == 200 and "experiment" in found else None
    if tags is None:
        raise UserError(f"MLFLOW_TRACKING_URI: {plain} is no MLflow server (it answers with status {status})")
    return next((tag.get("value") for tag in tags if tag.get("key") == RULES_TAG), None)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: a token is for the server that was named."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer stands as it came."""


def _answer(request: urllib.request.Request) -> tuple[int, bytes]:
    https = urllib.request.HTTPSHandler(context=_tls()) if request.type == "https" else urllib.request.HTTPHandler()
    try:
        with urllib.request.build_opener(https, _Stay()).open(request, timeout=_TIMEOUT) as answer:
            return int(answer.status), answer.read(1_000_000)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(1_000_000)


def _tls() -> Any:
    """As MLflow's own variables ask for."""
    import ssl

    given = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=given if given and Path(given).is_file() else None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if mine := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(mine)
    return context


def _credentials(address: urllib.parse.SplitResult) -> tuple[dict[str, str], str]:
    """The header by which MLflow shows who we are, and where that stands; from the places where MLflow looks."""
    file = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        file.read(Path("~/.mlflow/credentials").expanduser())
    pair = [
        os.environ.get(name) or file.get("mlflow", name.lower(), fallback="") or ""
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    ]
    if all(pair):
        return _basic(*pair), f"the user '{pair[0]}' and the password of MLFLOW_TRACKING_PASSWORD"
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}, "the token of MLFLOW_TRACKING_TOKEN"
    if address.username:
        user, password = (urllib.parse.unquote(part or "") for part in (address.username, address.password))
        return _basic(user, password), f"the user '{user}' and the password in MLFLOW_TRACKING_URI"
    with suppress(OSError, netrc.NetrcParseError):
        if entry := netrc.netrc().authenticators(address.hostname or ""):
            return _basic(entry[0], entry[2] or ""), f"the user '{entry[0]}' of .netrc"
    return {}, ""


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _json(body: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(body)
        return found if isinstance(found, dict) else {}
    return {}

"""The way to a Ray cluster: at an address that answers, or one of this machine's own; not a word on the terminal."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from noisebench.errors import UserError
from noisebench.execution import Ray

CONNECT_SECONDS = 5
"""How long an address may take to answer."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def load(settings: Ray) -> ModuleType:
    """Ray, imported with the settings that it reads only then.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("executor ray needs Ray; pip install 'noisebench[ray]'")
    environment, address = os.environ, settings.address
    # Ray puts a node that is to be at 127.0.0.1 at an outer address, open to all; not so where it knows no clusters.
    environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    environment.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # seconds that it tries to connect
    environment.setdefault("RAY_task_oom_retries", str(settings.retries))  # counted apart, and without end otherwise
    here = address in (None, "auto") or urlsplit(f"//{str(address).rpartition('/')[2]}").hostname in LOOPBACK
    if here and (Path.home() / ".ray" / "auth_token").exists():
        environment.setdefault("RAY_AUTH_MODE", "token")  # Ray itself does so where it is not told an address
    import ray

    return ray


def connect(ray: ModuleType, asked: str | None, cpus: int, folder: str) -> None:
    """Connect to the cluster at an address; without one, start one on this machine.

    Args:
        ray: what `load` gave.
        asked: execution.ray.address.
        cpus: of the cluster that is started.
        folder: of its sockets and logs.

    Raises:
        UserError: in one line, why not.
    """
    options: dict[str, Any] = {"address": "local" if asked is None else reachable(asked)}
    if asked is None:
        options |= {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
        options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
    terminate = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    try:
        with _aside(said):
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (Exception, SystemExit) as error:
        started = f"execution.ray.address: '{asked}'" if asked else "a Ray cluster of its own could not be started"
        raise UserError(f"{started}: {_cause(ray, error, said)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray sets its own
    # What its raylets tell goes to standard output, whatever log_to_driver says; there is no switch.
    setattr(importlib.import_module("ray._private.worker"), "print_to_stdstream", lambda *_, **__: None)  # noqa: B010


def reachable(asked: str) -> str:
    """The address to connect to, if a Ray server answers there: Ray itself tries for two minutes.

    Raises:
        UserError: none does.
    """
    address = asked
    if asked == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            address = os.environ.get("RAY_ADDRESS") or str(canonicalize_bootstrap_address(asked))
        except Exception:
            raise UserError("execution.ray.address: 'auto': no Ray cluster runs on this machine") from None
    problem = ""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port or parts.scheme not in ("", "ray"):
            raise ValueError
        with socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS) as connection:
            # A gRPC server begins with a frame of settings, unless it waits for TLS.
            if os.environ.get("RAY_USE_TLS", "0") == "0" and connection.recv(4)[3:] != b"\x04":
                problem = "what answers there is not Ray"
    except ValueError:
        problem = "give host:port, ray://host:port or auto"
    except OSError as error:
        problem = f"nothing answers there ({error.strerror or error})"
    if problem:
        raise UserError(f"execution.ray.address: '{asked}': {problem}")
    return address


@contextmanager
def _aside(said: list[str]) -> Iterator[None]:
    """What is written to standard error meanwhile, by Ray's C++ too, goes there instead of to the terminal."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read())


def _cause(ray: ModuleType, error: BaseException, said: list[str]) -> str:
    """One line on why there is no connection: another Ray or Python, a token, or what Ray says."""
    text = " ".join([str(error), *said]).lower()
    if "version mismatch" in text or "versions differ" in text or "minor version" in text:
        here = f"Ray {ray.__version__} and Python {platform.python_version()}"
        return f"the cluster has another Ray or Python than {here} here; install the same: {line(error)}"
    if "authtoken" in text or "unauthenticated" in text or "token" in str(error).lower():
        return "the cluster wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to it"
    return line(error)


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

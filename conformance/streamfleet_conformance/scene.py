"""What a case works with: clients, workers, ways to the server, and a look at the server itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias
from uuid import uuid4

from streamfleet.task import Task
from streamfleet_conformance.actors import ActorProcess, Spec
from streamfleet_conformance.backends import Backend
from streamfleet_conformance.harness import Harness
from streamfleet_conformance.journal import Journal
from streamfleet_conformance.shells import ClientFacade, Running, Shell, WorkerFacade
from streamfleet_conformance.waiting import eventually
from streamfleet_conformance.ways import Way
from streamfleet_core.connection import Argument, Capability, Connection, Reply, ServerError
from streamfleet_core.errors import ConnectionFailure
from streamfleet_core.keys import GROUP, QueueKeys, queue_keys
from streamfleet_core.replies import parse_entries, parse_flat

LEASE = 0.8
"""Seconds: short, so that cases are quick, and long enough for a busy machine to beat in time."""
TIMEOUT = 10.0

Handlers: TypeAlias = "Callable[[Task], object] | Mapping[str, Callable[[Task], object]]"
Fields: TypeAlias = Mapping[str, "bytes | str"]

GO_TASK: dict[str, str] = {
    "enc_version": "1",
    "id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "client_id": "go-client",
    "data": "hello",
    "max_retries": "3",
    "expires_ts": "0",
    "retry_delay": "0",
    "send_notif": "0",
    "retries": "0",
}
"""A task as the Go library writes it."""


class Scene:
    """The stage of one case. Its queue belongs to it alone; `close` ends and removes all of it."""

    def __init__(
        self, harness: Harness, shell: Shell, backend: Backend, spec: Spec, running: Running = Running.THREAD
    ) -> None:
        self.running = running
        self.harness = harness
        self.shell = shell
        self.backend = backend
        self.queue = f"case-{uuid4().hex[:12]}"
        self.journal = Journal()
        self.spec = spec
        self._stack = ExitStack()
        self._admin: Connection | None = None
        self._names = itertools.count(1)
        self._queues = [self.queue]
        self._clients: list[ClientFacade] = []
        self._workers: list[WorkerFacade] = []
        self._gates: list[threading.Event] = []
        self._ways: list[Way] = []

    @property
    def interrupts(self) -> bool:
        """Are handlers with a script of their own interrupted when their attempt is given up? Threads are not."""
        return self.running is Running.AWAITED

    # ---- actors -------------------------------------------------------------------------------------

    @property
    def keys(self) -> QueueKeys:
        """The keys of the case's queue."""
        return queue_keys(self.queue)

    def more_queue(self, name: str = "") -> str:
        """Another queue of this case, cleaned up with it."""
        self._queues.append(name or f"{self.queue}-{len(self._queues)}")
        return self._queues[-1]

    def client(self, *queues: str, way: Way | None = None, **config: Any) -> ClientFacade:
        """A client; ``config`` as the shell takes it."""
        driver = self.harness.driver(way.url if way else self.backend.url)
        self._stack.callback(driver.close)
        client = self.shell.client(driver, queues or (self.queue,), **config)
        self._clients.append(client)
        return client

    def worker(
        self,
        handlers: Handlers | None = None,
        *,
        way: Way | None = None,
        url: str = "",
        timeout: float | None = None,
        **config: Any,
    ) -> WorkerFacade:
        """A worker, running. Without ``handlers`` it completes what comes, and the journal tells."""
        running = self.running
        driver = self.harness.driver(url or (way.url if way else self.backend.url))
        self._stack.callback(driver.close)
        if handlers is None:
            handlers = self.journal.handler()
            running = Running.THREAD if running is Running.THREAD else Running.ON_LOOP
        if callable(handlers):
            handlers = {self.queue: handlers}
        config = {"lease": LEASE, "scan_interval": 0.1, "poll_interval": 0.1, "concurrency": 4} | config
        config.setdefault("name", f"worker-{next(self._names)}")
        timed = {queue: (handler, timeout) for queue, handler in handlers.items()}
        worker = self.shell.worker(driver, timed, running, **config)
        self._workers.append(worker)
        return worker

    def process(self, behaviour: str, *, way: Way | None = None, **config: Any) -> ActorProcess:
        """A worker in a process of its own; see `actors` for what it may do."""
        url = way.url if way else self.backend.url
        config = {"lease": LEASE, "scan_interval": 0.1, "poll_interval": 0.1, "concurrency": 4} | config
        process = ActorProcess(self.spec, url, self.queue, behaviour, self.running, config)
        self._stack.callback(process.close)
        return process

    def way(self) -> Way:
        """A way to the server that can be closed."""
        way = Way(self.backend)
        self._ways.append(way)
        self._stack.callback(way.close)
        return way

    def connect(self, way: Way | None = None, timeout: float = 5.0) -> Connection:
        """A bare connection of the driver."""
        driver = self.harness.driver(way.url if way else self.backend.url)
        self._stack.callback(driver.close)
        connection = self.shell.connect(driver, timeout)
        self._stack.callback(connection.close)
        return connection

    def connect_to(self, url: str, timeout: float = 5.0) -> Connection:
        """A bare connection to another URL of the same server, for instance with other credentials."""
        driver = self.harness.driver(url)
        self._stack.callback(driver.close)
        connection = self.shell.connect(driver, timeout)
        self._stack.callback(connection.close)
        return connection

    def gate(self) -> threading.Event:
        """An event for handlers to wait on; it is set at the end of the case at the latest."""
        self._gates.append(threading.Event())
        return self._gates[-1]

    def declared_missing(self) -> frozenset[Capability]:
        """What the driver declares as missing, by itself or of this server."""
        connection = self.connect()
        try:
            return self.harness.driver(self.backend.url).missing | connection.identity.missing
        finally:
            connection.close()

    # ---- a look at the server -----------------------------------------------------------------------

    def do(self, *command: Argument) -> Reply:
        """The reply to one command, by the case's own connection; errors are values."""
        return self.do_all(command)[0]

    def do_all(self, *commands: tuple[Argument, ...]) -> list[Reply]:
        """The replies to several commands in one exchange. Connects again when the connection has broken."""
        for _ in range(2):
            if self._admin is None:
                self._admin = self.connect()
            try:
                return self._admin.exchange(commands, TIMEOUT)
            except ConnectionFailure:
                self._admin.close()
                self._admin = None
        raise AssertionError(f"no connection to look at {self.backend.url} with")

    def number(self, *command: Argument) -> int:
        """As `do`, for commands that answer a number."""
        reply = self.do(*command)
        assert isinstance(reply, int), f"{command[0]!r} answered {reply!r}"
        return reply

    def add(self, fields: Fields, queue: str | None = None) -> bytes:
        """Put an entry into the queue's stream as somebody else would. Returns its id."""
        flat = [part for pair in fields.items() for part in pair]
        reply = self.do("XADD", queue_keys(queue or self.queue).stream, "*", *flat)
        assert isinstance(reply, bytes), f"XADD answered {reply!r}"
        return reply

    def entries(self, key: bytes | None = None) -> list[dict[bytes, bytes]]:
        """The entries of a stream (the queue's unless told), each as its fields."""
        rows = parse_entries(self.do("XRANGE", key or self.keys.stream, "-", "+"))
        return [dict(zip(f[::2], f[1::2], strict=True)) for _, f in rows if f is not None]

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        """The queue's dead letters."""
        return self.entries(self.keys.dead)

    def pending(self, consumer: str | None = None) -> list[list[Reply]]:
        """The rows of XPENDING: id, consumer, idle ms, deliveries."""
        command = ("XPENDING", self.keys.stream, GROUP, "-", "+", 10_000)
        reply = self.do(*command, consumer) if consumer else self.do(*command)
        if isinstance(reply, ServerError):
            return []
        return [row for row in reply if isinstance(row, list)] if isinstance(reply, list) else []

    def consumers(self) -> dict[str, int]:
        """Consumers of the queue's group and how many entries each has pending."""
        reply = self.do("XINFO", "CONSUMERS", self.keys.stream, GROUP)
        rows = [parse_flat(row) for row in reply] if isinstance(reply, list) else []
        return {row[b"name"].decode(): int(row[b"pending"]) for row in rows}  # type: ignore[union-attr,arg-type]

    def drained(self) -> None:
        """Wait until the queue is empty: no entry, nothing pending, nothing scheduled."""
        keys = self.keys

        def left() -> bool:
            counts = self.do_all(("XLEN", keys.stream), ("ZCARD", keys.schedule))
            return counts == [0, 0] and not self.pending()

        eventually(left, f"the queue is empty (stream, schedule: {self._left()})")

    def _left(self) -> list[Reply]:
        return self.do_all(("XLEN", self.keys.stream), ("ZCARD", self.keys.schedule))

    def own_keys(self) -> set[bytes]:
        """All keys of the server that name the case's queues."""
        found: set[bytes] = set()
        cursor: Reply = b"0"
        while True:
            reply = self.do("SCAN", cursor if isinstance(cursor, bytes) else b"0", "COUNT", 1000)
            assert isinstance(reply, list), f"SCAN answered {reply!r}"
            cursor, page = reply
            found.update(key for key in page if isinstance(key, bytes))  # type: ignore[union-attr]
            if cursor == b"0":
                break
        names = [queue.encode() for queue in self._queues]
        return {key for key in found if any(name in key for name in names)}

    def lasting_keys(self) -> set[bytes]:
        """Of `own_keys`, those that do not go by themselves after a time."""
        keys = sorted(self.own_keys())
        times = self.do_all(*[("PTTL", key) for key in keys]) if keys else []
        return {key for key, time in zip(keys, times, strict=True) if time == -1}

    def group(self) -> None:
        """Create the queue's stream and group, as a worker would."""
        self.do("XGROUP", "CREATE", self.keys.stream, GROUP, "0", "MKSTREAM")

    def dead_consumer(self, count: int, name: str = "dead:consumer") -> list[bytes]:
        """Deliver ``count`` entries to a consumer of which nothing more is heard. Returns their ids."""
        stream = self.keys.stream
        self.group()
        reply = self.do("XREADGROUP", "GROUP", GROUP, name, "COUNT", count, "STREAMS", stream, ">")
        assert isinstance(reply, list), f"nothing to deliver: {reply!r}"
        ids = [entry_id for entry_id, _ in parse_entries(reply[0][1])]  # type: ignore[index]
        assert len(ids) == count
        return ids

    # ---- end ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all actors and remove the case's keys. Raises what went wrong with that."""
        for gate in self._gates:
            gate.set()
        for way in self._ways:
            way.restore()
        with self._stack, ExitStack() as ends:
            if not self.harness.in_process and not self._server_is_ours():
                ends.callback(self._remove_keys)
            for client in self._clients:
                ends.callback(client.close, 2.0)
            for worker in self._workers:
                ends.callback(worker.stop, 1.0)

    def _server_is_ours(self) -> bool:
        return self.backend is not self.spec.shared

    def _remove_keys(self) -> None:
        keys = sorted(self.own_keys())
        if keys:
            self.do("DEL", *keys)


def shuffled(fields: Mapping[str, str], seed: int) -> dict[str, str]:
    """The fields in another order, as Go's maps would give them."""
    names = sorted(fields, key=lambda name: hash((seed * 7919 + len(name)) * (ord(name[0]) + 31) % 997))
    return {name: fields[name] for name in names}


def fields_of(entry: Sequence[bytes]) -> list[bytes]:
    """The names of an entry's fields, in order."""
    return list(entry[::2])

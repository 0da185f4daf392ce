"""What the connections of a memory driver share: a model server behind a lock, and who waits for what."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from streamfleet.memory.model import ModelServer
from streamfleet.memory.session import Blocked, Session
from streamfleet.memory.session_commands import SERVER, VERSION
from streamfleet_core.connection import Capability, Command, Reply, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown

MISSING = frozenset(
    {
        Capability.SERVER_INFO,
        Capability.ACL,
        Capability.PERSISTENCE,
        Capability.OUT_OF_PROCESS,
        Capability.CLUSTER_COMMANDS,
        Capability.XACKDEL,
    }
)


class Waker(Protocol):
    """Wakes whoever waits; ``set`` may be called from any thread."""

    def set(self) -> None: ...


W = TypeVar("W", bound=Waker)


class Hub:
    """A model server that threads and event loops may share: to be used within ``with hub:``."""

    def __init__(self, model: ModelServer) -> None:
        self.model = model
        self.available = True
        # Held only while commands run, which takes microseconds: an event loop may wait for it, too.
        self._lock = threading.Lock()
        self._doomed: deque[Session] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *details: object) -> None:
        self._lock.release()
        if self._doomed:
            self._close_doomed()

    def close(self, session: Session) -> None:
        """Close a session without waiting for the lock: whoever holds it does the closing at its release.

        The garbage collector may come here, by way of an abandoned coroutine, in the midst of a command.
        """
        self._doomed.append(session)
        self._close_doomed()

    def _close_doomed(self) -> None:
        while self._doomed and self._lock.acquire(blocking=False):
            try:
                while self._doomed:
                    self._doomed.popleft().close()
            finally:
                self._lock.release()


def wall_clock_ms() -> int:
    """Unix time in ms: the server's clock, unless a driver is given a server with another."""
    return int(time.time() * 1000)


_registry_lock = threading.Lock()
_servers: dict[str, ModelServer] = {}
_hubs: WeakKeyDictionary[ModelServer, Hub] = WeakKeyDictionary()


def hub_of(name: str, server: ModelServer | None) -> Hub:
    """The hub of a given server, or of the one that this process knows by that name."""
    with _registry_lock:
        if server is None:
            server = _servers.get(name)
        if server is None:
            server = _servers[name] = ModelServer(wall_clock_ms)
        hub = _hubs.get(server)
        if hub is None:
            hub = _hubs[server] = Hub(server)
        return hub


class Wait(Generic[W]):
    """One wait of an exchange: until ``waker`` is set, but no longer than ``seconds``."""

    __slots__ = ("seconds", "waker")

    def __init__(self, waker: W, seconds: float) -> None:
        self.waker = waker
        self.seconds = seconds


class Conversation:
    """The part of a connection that does not depend on how its owner waits."""

    def __init__(self, hub: Hub) -> None:
        """Open a session.

        Raises NotSent when the server is unavailable.
        """
        self._hub = hub
        self._broken = False
        with hub:
            if not hub.available:
                raise NotSent("the memory server is not accepting connections")
            self._session = hub.model.session()
        self.identity = ServerIdentity(
            server=SERVER.decode(),
            version=VERSION.decode(),
            client_id=self._session.client_id,
            missing=MISSING,
        )

    def steps(
        self, commands: Sequence[Command], timeout: float, new_waker: Callable[[], W]
    ) -> Generator[Wait[W], None, list[Reply]]:
        """Run an exchange; yields whenever its owner has to wait, and may be resumed early.

        Raises NotSent when the connection was unusable before, OutcomeUnknown when it is lost meanwhile or
        ``timeout`` (seconds) is over.
        """
        deadline = time.monotonic() + timeout
        replies: list[Reply] = []
        remaining = iter(commands)
        self._check_usable()
        while True:
            with self._hub:
                if self._session.closed:
                    raise self._loss("the connection was closed by the server")
                blocked = self._run(remaining, replies)
                if blocked is None:
                    return replies
                waker = new_waker()
                blocked.on_done = waker.set
            while not blocked.done:
                yield Wait(waker, self._patience(blocked, deadline))
                self._look_at_clock(blocked, deadline)
            if blocked.lost:
                raise self._loss("the connection was lost during a blocking read")
            replies.append(blocked.reply)

    def _check_usable(self) -> None:
        if self._broken:
            raise NotSent("the connection has been closed")

    def _run(self, remaining: Iterator[Command], replies: list[Reply]) -> Blocked | None:
        for command in remaining:
            outcome = self._session.execute(command)
            if isinstance(outcome, Blocked):
                return outcome
            replies.append(outcome)
        return None

    def _patience(self, blocked: Blocked, deadline: float) -> float:
        """Seconds until the BLOCK time or the exchange's own is over."""
        seconds = deadline - time.monotonic()
        if blocked.deadline_ms is not None:
            seconds = min(seconds, (blocked.deadline_ms - self._hub.model.now_ms()) / 1000)
        # The server's clock counts whole ms: look again no sooner than it can have moved.
        return max(seconds, 0.001)

    def _look_at_clock(self, blocked: Blocked, deadline: float) -> None:
        with self._hub:
            if blocked.done:
                return
            self._hub.model.tick()
            if not blocked.done and time.monotonic() >= deadline:
                self._session.close()
                raise self._loss("no reply within the timeout")

    def _loss(self, reason: str) -> OutcomeUnknown:
        self._broken = True
        return OutcomeUnknown(reason)

    def interrupt(self) -> None:
        """Break the connection; an exchange that waits fails with OutcomeUnknown. From any thread."""
        self.close()

    def close(self) -> None:
        """Close the connection, as seen by both sides. Idempotent."""
        self._broken = True
        self._hub.close(self._session)

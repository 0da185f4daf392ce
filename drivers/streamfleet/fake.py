"""The driver on fakeredis, for tests of users' own code: ``pip install 'streamfleet[fake]'``.

fakeredis runs in this process; its server is an object. A session is a fakeredis socket, spoken to below the
client library, so that nothing is re-sent and error replies keep their codes. fakeredis loses entries in
blocking reads, so the driver reads without BLOCK and tries again every few milliseconds until the block time
is over. What fakeredis cannot do is found by trying, once, and declared in ``missing``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cache
from time import monotonic
from typing import Any, TypeVar, cast

from streamfleet.extras import require
from streamfleet.resp import pack_commands
from streamfleet.running_loop import running_library
from streamfleet_core.connection import Argument, Capability, Command, Reply, ServerError, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown

T = TypeVar("T")

POLL_SECONDS = 0.005
VERSION = (7, 0)
"""The Redis version that fakeredis is asked to imitate."""

_BY_DESIGN = frozenset({Capability.CLIENT_UNBLOCK, Capability.PERSISTENCE, Capability.OUT_OF_PROCESS})
_READS = (b"XREAD", b"XREADGROUP")


class FakeSession:
    """One session of a fakeredis server: commands in, replies out, never blocking."""

    def __init__(self, server: Any) -> None:
        import fakeredis

        # The client object knows how this version of fakeredis makes its sockets.
        client = fakeredis.FakeStrictRedis(server=server, protocol=2)
        self._server = server
        self._connection = cast("Any", client.connection_pool.get_connection())
        self._socket: Any = self._connection._sock
        self._queueing = False
        self._in_use = threading.Lock()
        self._ended = False
        self._socket._decode_error = lambda error: _as_servers_say(error.value)

    @property
    def reachable(self) -> bool:
        """False while a test has set ``connected`` of the server to False."""
        return bool(self._server.connected)

    def execute(self, command: Command) -> Reply:
        """Run one command that does not block. Raises what fakeredis raises when it breaks."""
        try:
            with self._in_use:
                return self._execute(command)
        finally:
            self._clean_up()

    def _execute(self, command: Command) -> Reply:
        name = _name(command)
        self._queueing = name == b"MULTI" or (self._queueing and name not in (b"EXEC", b"DISCARD"))
        self._socket.sendall(pack_commands([command]))
        reply: Reply = self._socket.responses.get_nowait()
        if name in _READS:
            # A read that finds nothing is nil; fakeredis answers XREAD with an empty array.
            if reply == []:
                return None
            # It tells of a missing stream in the words of XGROUP.
            if isinstance(reply, ServerError) and "requires the key to exist" in reply.message:
                return ServerError("NOGROUP No such key or consumer group")
        return reply

    def without_block(self, command: Command) -> tuple[Command, float]:
        """A blocking read as one that does not block, and its block time in seconds (else 0)."""
        if _name(command) not in _READS:
            return command, 0.0
        words = [_as_bytes(argument) for argument in command]
        options = [word.upper() for word in words]
        if b"STREAMS" not in options:
            return command, 0.0
        del options[options.index(b"STREAMS") :]
        at = options.index(b"BLOCK") if b"BLOCK" in options else -1
        if at < 0 or not words[at + 1].isdigit():
            return command, 0.0
        milliseconds = int(words[at + 1])
        del words[at : at + 2]
        if not self._queueing:  # a read inside MULTI does not block
            self._fix_last_ids(words, len(options) - 1)
        return tuple(words), milliseconds / 1000 if milliseconds else float("inf")

    def _fix_last_ids(self, words: list[bytes], keys_at: int) -> None:
        """``$`` means the last entry when the read begins, not when it is tried again."""
        count = (len(words) - keys_at) // 2
        for at in range(keys_at + count, len(words)):
            if words[at] == b"$":
                words[at] = self._last_id(words[at - count])

    def _last_id(self, stream: bytes) -> bytes:
        match self.execute(("XREVRANGE", stream, "+", "-", "COUNT", 1)):
            case [[bytes() as entry_id, *_]]:
                return entry_id
        return b"0-0"

    def close(self) -> None:
        """End the session, and its WATCHes with it; after the command that another thread runs, if one does.

        Under a command fakeredis would lose its footing: a transaction would be left half done.
        """
        self._ended = True
        self._clean_up()

    def _clean_up(self) -> None:
        """Release the socket when the session has ended; whoever leaves it last does that, and nobody waits."""
        if self._ended and self._in_use.acquire(blocking=False):
            try:
                self._connection.disconnect()
            finally:
                self._in_use.release()


class _FakeExchange:
    """What the connections of threads and of async shells share: an exchange as a generator of pauses."""

    def __init__(self, session: FakeSession, url: str, missing: frozenset[Capability]) -> None:
        client_id = session.execute(("CLIENT", "ID"))
        self.identity = ServerIdentity(
            server="fakeredis",
            version=".".join(map(str, VERSION)),
            client_id=client_id if isinstance(client_id, int) else 0,
            missing=missing,
        )
        self._session = session
        self._url = url
        self._broken = ""

    def _steps(self, commands: Sequence[Command], timeout: float, replies: list[Reply]) -> Iterator[None]:
        """Fill in the replies; each yield asks for a pause."""
        if not self._session.reachable:
            self._broken = self._broken or "the server has been made unreachable"
        if self._broken or timeout <= 0:
            raise NotSent(f"nothing sent to {self._url}: {self._broken or 'no time left'}")
        pack_commands(commands)  # raises TypeError for a wrong argument while nothing has been done yet
        deadline = monotonic() + timeout
        for command in commands:
            command, block = self._do(self._session.without_block, command)
            until = monotonic() + block
            reply = self._do(self._session.execute, command)
            while reply is None and monotonic() < until:
                if monotonic() >= deadline:
                    raise self._lost(f"no answer within {timeout:g} s")
                yield
                reply = self._do(self._session.execute, command)
            replies.append(reply)

    def _do(self, step: Callable[[Command], T], command: Command) -> T:
        if self._broken or not self._session.reachable:
            raise self._lost("the server has been made unreachable")
        try:
            return step(command)
        except Exception as error:
            # Closed by another thread meanwhile, or fakeredis itself has broken down, in the middle of a command.
            raise self._lost(f"fakeredis raised {error!r}") from error

    def _lost(self, why: str) -> OutcomeUnknown:
        self._broken = self._broken or why
        return OutcomeUnknown(f"lost {self._url}: {self._broken}")


class FakeConnection(_FakeExchange):
    """Implements `streamfleet_core.connection.Connection`."""

    def __init__(self, session: FakeSession, url: str, missing: frozenset[Capability]) -> None:
        super().__init__(session, url, missing)
        self._wake = threading.Event()

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `Connection.exchange`."""
        replies: list[Reply] = []
        for _ in self._steps(commands, timeout, replies):
            self._wake.wait(POLL_SECONDS)
        return replies

    def interrupt(self) -> None:
        """See `Connection.interrupt`."""
        self._broken = self._broken or "interrupted"
        self._wake.set()

    def close(self) -> None:
        """See `Connection.close`."""
        self._broken = self._broken or "closed"
        self._wake.set()
        self._session.close()


class AsyncFakeConnection(_FakeExchange):
    """Implements `streamfleet_core.connection.AsyncConnection` for asyncio and for trio."""

    def __init__(self, session: FakeSession, url: str, missing: frozenset[Capability]) -> None:
        super().__init__(session, url, missing)
        self._sleep = _sleep_of_this_loop()

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `AsyncConnection.exchange`."""
        replies: list[Reply] = []
        await self._sleep(0)
        for _ in self._steps(commands, timeout, replies):
            try:
                await self._sleep(POLL_SECONDS)
            except BaseException:
                self._broken = "cancelled"
                raise
        return replies

    def interrupt(self) -> None:
        """See `AsyncConnection.interrupt`."""
        self._broken = self._broken or "interrupted"

    def close(self) -> None:
        """See `AsyncConnection.close`."""
        self._broken = self._broken or "closed"
        self._session.close()


class FakeDriver:
    """Connects to a fakeredis server in this process, from threads, asyncio and trio.

    ``server``: a ``fakeredis.FakeServer`` to share; by default each driver has a server of its own. Setting
    its ``connected`` to False makes it unreachable until it is set back. Raises MissingExtra.
    """

    name = "fake"
    url = "fakeredis in this process"

    def __init__(self, server: Any = None) -> None:
        require("fakeredis", "the fake driver", "fake")
        self.server = server if server is not None else _new_server()
        self.missing = _missing()

    def connect(self, timeout: float) -> FakeConnection:
        """See `streamfleet_core.connection.Driver.connect`."""
        return FakeConnection(self._session(), self.url, self.missing)

    async def connect_async(self, timeout: float) -> AsyncFakeConnection:
        """See `streamfleet_core.connection.AsyncDriver.connect_async`.

        Raises WrongDriver outside of asyncio and trio.
        """
        return AsyncFakeConnection(self._session(), self.url, self.missing)

    def close(self) -> None:
        """Nothing to release: the server goes with its last user."""

    def _session(self) -> FakeSession:
        if not self.server.connected:
            raise NotSent(f"cannot connect to {self.url}: it is not reachable")
        return FakeSession(self.server)


def _new_server() -> Any:
    import fakeredis

    return fakeredis.FakeServer(version=VERSION)


@cache
def _missing() -> frozenset[Capability]:
    """What the installed fakeredis lacks, found by trying on a server of its own."""
    server = _new_server()
    lacking = (what for what, works in _TRIALS.items() if not works(FakeSession(server), FakeSession(server)))
    return _BY_DESIGN.union(lacking)


def _answers(*commands: Command) -> Callable[[FakeSession, FakeSession], bool]:
    def works(session: FakeSession, _other: FakeSession) -> bool:
        return not any(isinstance(session.execute(command), ServerError) for command in commands)

    return works


def _watch_sees_xdel(session: FakeSession, other: FakeSession) -> bool:
    entry = session.execute(("XADD", "stream", "*", "field", "value"))
    session.execute(("WATCH", "stream"))
    other.execute(("XDEL", "stream", entry if isinstance(entry, bytes) else b""))
    session.execute(("MULTI",))
    return session.execute(("EXEC",)) is None


def _permissions(session: FakeSession, _other: FakeSession) -> bool:
    session.execute(("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+auth"))
    session.execute(("AUTH", "limited", "secret"))
    reply = session.execute(("XDEL", "stream", "1-1"))
    return isinstance(reply, ServerError) and reply.code == "NOPERM"


_TRIALS: dict[Capability, Callable[[FakeSession, FakeSession], bool]] = {
    Capability.SERVER_INFO: _answers(("INFO",), ("CONFIG", "GET", "maxmemory"), ("MEMORY", "USAGE", "stream")),
    Capability.CLUSTER_COMMANDS: _answers(("CLUSTER", "KEYSLOT", "stream")),
    Capability.XACKDEL: _answers(("XACKDEL", "stream", "group", "IDS", 1, "1-1")),
    Capability.WATCH_SEES_XDEL: _watch_sees_xdel,
    Capability.ACL: _permissions,
}


def _as_servers_say(line: str) -> ServerError:
    """fakeredis puts ERR before one of the codes."""
    return ServerError(line.removeprefix("ERR ") if line.startswith("ERR BUSYGROUP") else line)


def _name(command: Command) -> bytes:
    return _as_bytes(command[0]).upper()


def _as_bytes(argument: Argument) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


def _sleep_of_this_loop() -> Callable[[float], Awaitable[Any]]:
    """The sleep of the running library. Raises WrongDriver outside of asyncio and trio."""
    if running_library("FakeDriver") == "trio":
        import trio

        return trio.sleep
    return asyncio.sleep

"""One client's session with the model server: transactions, watches, blocking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from streamfleet.memory.arguments import CommandError, refuse, text, to_bytes
from streamfleet.memory.database import Handler, WouldBlock
from streamfleet_core.connection import Command, Reply, ServerError

if TYPE_CHECKING:
    from streamfleet.memory.model import ModelServer


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command of the server. ``arity`` counts the name; negative is a minimum."""

    name: str
    arity: int
    handler: Handler | None = None
    session_handler: SessionHandler | None = None
    """Set instead of ``handler`` for a command that is about the session."""
    immediate: bool = False
    """Executed at once even between MULTI and EXEC."""
    subcommands: Mapping[bytes, int] | None = None
    """The arity of each subcommand, where the command has such."""


class Blocked:
    """A blocking read that waits. ``done`` and ``reply`` are set by the server when it ends.

    ``on_done``, when set, is called once at that moment, from within whichever call on the server ended the
    wait; it must not call the server. ``deadline_ms`` is the server's time of the BLOCK timeout, or None.
    """

    __slots__ = ("deadline_ms", "done", "lost", "on_done", "reply", "session", "wait")

    def __init__(self, session: Session, wait: WouldBlock, deadline_ms: int | None) -> None:
        self.session = session
        self.deadline_ms = deadline_ms
        self.done = False
        self.lost = False
        """The session was closed meanwhile: there is no reply."""
        self.reply: Reply = None
        self.on_done: Callable[[], None] | None = None
        self.wait = wait
        """How to try again; for the server."""

    @property
    def keys(self) -> list[bytes]:
        """The keys that it waits for."""
        return self.wait.keys


class Session:
    """A client's session. Made by `ModelServer.session`."""

    __slots__ = (
        "_aborted",
        "_queue",
        "_watched",
        "blocked",
        "client_id",
        "closed",
        "dirty",
        "name",
        "server",
    )

    def __init__(self, server: ModelServer, client_id: int) -> None:
        self.server = server
        self.client_id = client_id
        self.name = b""
        self.closed = False
        self.dirty = False
        self.blocked: Blocked | None = None
        self._queue: list[tuple[CommandSpec, list[bytes]]] | None = None
        self._aborted = False
        self._watched: dict[bytes, None] = {}

    def execute(self, command: Command) -> Reply | Blocked:
        """Run one command to its reply, or to a `Blocked` for a blocking read that has nothing to read.

        Raises RuntimeError when the session is closed or still blocked.
        """
        if self.closed or self.blocked is not None:
            raise RuntimeError("the session is closed" if self.closed else "the session is blocked")
        args = [part if type(part) is bytes else to_bytes(part) for part in command]
        server = self.server
        spec = server.commands.get(args[0]) or server.commands.get(args[0].upper())
        refusal = _refusal(spec, args)
        if refusal is not None or spec is None:
            self._aborted = True  # matters only between MULTI and EXEC
            return refusal
        if self._queue is not None and not spec.immediate:
            self._queue.append((spec, args))
            return b"QUEUED"
        server.database.now_ms = server.now_ms()
        outcome = self._run(spec, args)
        if isinstance(outcome, WouldBlock):
            return server.block(self, outcome)
        if server.database.ready:
            server.serve_ready()
        return outcome

    def _run(self, spec: CommandSpec, args: list[bytes]) -> Reply | WouldBlock:
        try:
            if spec.handler is not None:
                return spec.handler(self.server.database, args)
            assert spec.session_handler is not None
            return spec.session_handler(self, args)
        except CommandError as error:
            return error.reply

    def close(self) -> None:
        """End the session as a lost connection does: watches go, a blocked read ends without a reply."""
        if self.closed:
            return
        self.closed = True
        self.unwatch()
        self._queue = None
        self.server.forget(self)

    # Transactions

    def multi(self, args: list[bytes]) -> Reply:
        if self._queue is not None:
            self._aborted = True
            refuse("ERR Command 'multi' not allowed inside a transaction")
        self._queue = []
        self._aborted = False
        return b"OK"

    def exec(self, args: list[bytes]) -> Reply:
        queue = self._queue
        if queue is None:
            refuse("ERR EXEC without MULTI")
        for key in self._watched:
            self.server.database.expire_if_due(key)
        aborted, dirty = self._aborted, self.dirty
        self._queue = None
        self.unwatch()
        if aborted:
            refuse("EXECABORT Transaction discarded because of previous errors.")
        if dirty:
            return None
        replies: list[Reply] = []
        for spec, queued in queue:
            outcome = self._run(spec, queued)
            replies.append(None if isinstance(outcome, WouldBlock) else outcome)
        return replies

    def discard(self, args: list[bytes]) -> Reply:
        if self._queue is None:
            refuse("ERR DISCARD without MULTI")
        self._queue = None
        self.unwatch()
        return b"OK"

    def watch(self, args: list[bytes]) -> Reply:
        if self._queue is not None:
            self._aborted = True
            refuse("ERR Command 'watch' not allowed inside a transaction")
        database = self.server.database
        for key in args[1:]:
            database.expire_if_due(key)
            self._watched[key] = None
            database.watchers.setdefault(key, {})[self] = None
        return b"OK"

    def unwatch(self) -> None:
        """Drop all watches."""
        self.dirty = False
        watchers = self.server.database.watchers
        for key in self._watched:
            watching = watchers[key]
            del watching[self]
            if not watching:
                del watchers[key]
        self._watched.clear()


SessionHandler: TypeAlias = Callable[[Session, list[bytes]], Reply]


def _refusal(spec: CommandSpec | None, args: list[bytes]) -> ServerError | None:
    """Why a command is not even queued."""
    if spec is None:
        shown = "".join(f"'{text(part[:128])}' " for part in args[1:])[:128]
        return ServerError(
            f"ERR unknown command '{text(args[0][:128])}', with args beginning with: {shown}".rstrip("\r\n")
        )
    if _wrong_count(spec.arity, args):
        return ServerError(f"ERR wrong number of arguments for '{spec.name.lower()}' command")
    if spec.subcommands is None:
        return None
    arity = spec.subcommands.get(args[1].upper())
    if arity is None:
        return ServerError(f"ERR unknown subcommand '{text(args[1][:128])}'. Try {spec.name} HELP.")
    if _wrong_count(arity, args):
        name = f"{spec.name}|{text(args[1])}".lower()
        return ServerError(f"ERR wrong number of arguments for '{name}' command")
    return None


def _wrong_count(arity: int, args: list[bytes]) -> bool:
    return (arity > 0 and len(args) != arity) or len(args) < -arity

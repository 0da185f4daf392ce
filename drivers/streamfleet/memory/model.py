"""A model of the server: the commands that streamfleet uses, with their side effects, in plain Python.

It is deterministic and single-threaded: time is what its owner's clock says, and nothing happens but within
a call on it or on one of its sessions. Three things lean on it: the simulator, where it is the other half of
the world; the ``memory://`` driver; and the differential tests, which hold it to the real servers.

Blocking reads are data. `Session.execute` gives a `Blocked`, which the server completes in a later call: one
that adds an entry, deletes the stream or the group, unblocks the client, or, at `ModelServer.tick`, finds
its time run out. As on a real server, entries are delivered (and pending) at the moment they are added,
whether or not the client that waits for them is still there to receive them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from streamfleet.memory import (
    group_commands,
    hash_commands,
    key_commands,
    read_commands,
    session_commands,
    sorted_set_commands,
    stream_commands,
)
from streamfleet.memory.arguments import CommandError
from streamfleet.memory.database import Database, Value, WouldBlock
from streamfleet.memory.session import Blocked, CommandSpec, Session
from streamfleet.memory.streams import Stream
from streamfleet_core.connection import Reply, ServerError

_SUBCOMMANDS = {**group_commands.SUBCOMMANDS, **session_commands.SUBCOMMANDS}


def _command_table() -> dict[bytes, CommandSpec]:
    specs = [
        CommandSpec(name, arity, handler)
        for module in (
            key_commands,
            hash_commands,
            sorted_set_commands,
            stream_commands,
            group_commands,
            read_commands,
        )
        for name, (arity, handler) in module.COMMANDS.items()
    ]
    for table, immediate in (
        (session_commands.COMMANDS, False),
        (session_commands.IMMEDIATE_COMMANDS, True),
    ):
        specs += [CommandSpec(name, arity, None, handler, immediate) for name, (arity, handler) in table.items()]
    return {spec.name.encode(): replace(spec, subcommands=_SUBCOMMANDS.get(spec.name)) for spec in specs}


_COMMANDS = _command_table()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The data of a server at one moment. Opaque; may be restored any number of times."""

    values: dict[bytes, Value]
    expires: dict[bytes, int]


class ModelServer:
    """The model. ``now_ms`` gives the server's Unix time in ms and may be replaced at any time."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.commands = _COMMANDS
        self.sessions: dict[int, Session] = {}
        self._next_client_id = 1
        self._blocked: dict[Blocked, None] = {}
        # By key, in the order of their arrival: first come, first served.
        self._waiting: dict[bytes, dict[Blocked, None]] = {}
        self.database = self._empty_database()

    def _empty_database(self) -> Database:
        database = Database()
        database.awaited = self._waiting
        return database

    def session(self) -> Session:
        """Open a session, as a new connection does."""
        session = Session(self, self._next_client_id)
        self._next_client_id += 1
        self.sessions[session.client_id] = session
        return session

    # Faults

    def drop_connections(self) -> None:
        """Close all sessions."""
        for session in list(self.sessions.values()):
            session.close()

    def reset(self) -> None:
        """Restart without data: all sessions are closed and all keys are gone."""
        self.drop_connections()
        self.database = self._empty_database()

    def snapshot(self) -> Snapshot:
        """The data as it is now. Costs one pass over groups and keys; entries are shared, not copied."""
        return Snapshot(self.database.copy_values(), self.database.expires.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to an earlier state, as a failover does that loses a tail. All sessions are closed."""
        self.reset()
        self.database.values = snapshot.values
        self.database.values = self.database.copy_values()
        self.database.expires = snapshot.expires.copy()

    # Blocking

    def next_deadline(self) -> int | None:
        """The earliest time (server's Unix ms) at which `tick` has something to do, or None."""
        return min((one.deadline_ms for one in self._blocked if one.deadline_ms is not None), default=None)

    def tick(self) -> None:
        """End the blocked reads whose time has run out: they get nil."""
        now_ms = self.now_ms()
        for blocked in list(self._blocked):
            if blocked.deadline_ms is not None and blocked.deadline_ms <= now_ms:
                self._finish(blocked, None)

    def unblock(self, client_id: int, *, with_error: bool) -> bool:
        """CLIENT UNBLOCK: end a blocked read with nil or an error; whether there was one."""
        session = self.sessions.get(client_id)
        if session is None or session.blocked is None:
            return False
        error = ServerError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
        self._finish(session.blocked, error if with_error else None)
        return True

    def block(self, session: Session, wait: WouldBlock) -> Blocked:
        """Make a session wait. For `Session` only."""
        deadline = self.database.now_ms + wait.timeout_ms if wait.timeout_ms else None
        blocked = session.blocked = Blocked(session, wait, deadline)
        self._blocked[blocked] = None
        for key in wait.keys:
            self._waiting.setdefault(key, {})[blocked] = None
        return blocked

    def serve_ready(self) -> None:
        """Let blocked sessions try again whose keys have changed, in the order of their arrival."""
        database = self.database
        while database.ready:
            key = next(iter(database.ready))
            del database.ready[key]
            for blocked in list(self._waiting.get(key, ())):
                if blocked.done or (blocked.wait.needs_stream and not self._is_stream(key)):
                    continue
                outcome = self._try_again(blocked.wait)
                if isinstance(outcome, WouldBlock):
                    blocked.wait = outcome
                else:
                    self._finish(blocked, outcome)

    def _is_stream(self, key: bytes) -> bool:
        return isinstance(self.database.lookup(key), Stream)

    def _try_again(self, wait: WouldBlock) -> Reply | WouldBlock:
        try:
            return wait.handler(self.database, wait.command)
        except CommandError as error:
            return error.reply

    def _finish(self, blocked: Blocked, reply: Reply) -> None:
        self._release(blocked)
        blocked.reply = reply
        if blocked.on_done is not None:
            blocked.on_done()

    def _release(self, blocked: Blocked) -> None:
        del self._blocked[blocked]
        blocked.done = True
        blocked.session.blocked = None
        for key in dict.fromkeys(blocked.keys):
            waiting = self._waiting[key]
            del waiting[blocked]
            if not waiting:
                del self._waiting[key]

    def forget(self, session: Session) -> None:
        """Drop a closed session. For `Session` only."""
        self.sessions.pop(session.client_id, None)
        blocked = session.blocked
        if blocked is not None:
            blocked.lost = True
            self._finish(blocked, None)

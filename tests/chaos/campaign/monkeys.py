"""What goes wrong in a campaign, at random but from one seed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from campaign.fleet import LEASE, Denial, Fleet
from campaign.workload import QUEUES
from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.errors import ConnectionFailure, ServerRefused
from streamfleet_core.keys import GROUP, queue_keys

Later = tuple[float, Callable[[], None]]
UNDONE = 60.0
"""Seconds within which everything can be undone at the end."""
DENIED = "XDEL"
"""What nobody may do while a permission is missing."""


class Monkeys:
    """Each call of `act` does one bad thing; what has to be undone is undone when its time has come.

    Which one is drawn from a deck without putting it back, so that the rare things happen, too; what cannot be
    done at the moment comes later.
    """

    def __init__(self, server: EmbeddedServer, fleet: Fleet, rng: Random) -> None:
        self._server = server
        self._fleet = fleet
        self._rng = rng
        self._later: list[Later] = []
        self._server_down = False
        self.counts: Counter[str] = Counter()
        self._actions: list[tuple[int, Callable[[], str]]] = [
            (14, self.kill_worker),
            (6, self.kill_client),
            (8, self.suspend_worker),
            (3, self.suspend_client),
            (3, self.kill_server),
            (4, self.suspend_server),
            (8, self.cut_connections),
            (4, self.delete_receivers),
            (3, self.destroy_group),
            (6, self.delete_consumer),
            (6, self.pause_server),
            (3, self.fill_memory),
            (2, self.take_permission),
        ]
        self._deck: list[Callable[[], str]] = []

    def act(self) -> None:
        """One thing goes wrong."""
        if not self._deck:
            self._deck = [action for weight, action in self._actions for _ in range(weight)]
            self._rng.shuffle(self._deck)
        action = self._deck.pop()
        done = action()
        if done:
            self.counts[done] += 1
        else:
            self._deck.insert(self._rng.randrange(len(self._deck) + 1), action)

    def undo_everything(self) -> None:
        """Undo until nothing is left: what does not succeed yet is tried again."""
        deadline = time.monotonic() + UNDONE
        while self._later:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._later)} faults could not be undone within {UNDONE:g} s")
            self._undo([undo for _, undo in self._later])

    def undo_due(self) -> None:
        """End what has lasted long enough."""
        now = time.monotonic()
        self._undo([undo for at, undo in self._later if at <= now])

    def _undo(self, due: list[Callable[[], None]]) -> None:
        self._later = [(at, undo) for at, undo in self._later if undo not in due]
        for undo in due:
            undo()

    def _undo_in(self, seconds: float, undo: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, undo))

    def ask(self, *commands: Command) -> list[Reply]:
        """Ask the server, past all faults; nothing when it does not answer."""
        try:
            connection = RedisDriver(self._server.url).connect(2.0)
        except (ConnectionFailure, ServerRefused):
            return []
        try:
            return connection.exchange(list(commands), 5.0)
        except ConnectionFailure:
            return []
        finally:
            connection.close()

    # ---- processes ----------------------------------------------------------------------------------

    def kill_worker(self) -> str:
        """SIGKILL, as the kernel's out-of-memory killer does."""
        return self._signal("worker", signal.SIGKILL)

    def kill_client(self) -> str:
        """SIGKILL."""
        return self._signal("client", signal.SIGKILL)

    def _signal(self, role: str, number: signal.Signals) -> str:
        member = self._fleet.pick(role)
        if member is None:
            return ""
        self._fleet.send(member, number)
        return f"{role} {number.name}"

    def suspend_worker(self) -> str:
        """SIGSTOP for up to two and a half leases: it wakes up when others own its entries."""
        return self._suspend("worker", 2.5 * LEASE)

    def suspend_client(self) -> str:
        """SIGSTOP."""
        return self._suspend("client", 2 * LEASE)

    def _suspend(self, role: str, most: float) -> str:
        member = self._fleet.pick(role)
        if member is None or member.suspended:
            return ""
        process = member.process
        self._fleet.send(member, signal.SIGSTOP)

        def resume() -> None:
            if member.process is process:
                self._fleet.send(member, signal.SIGCONT)

        self._undo_in(self._rng.uniform(0.2, most), resume)
        return f"{role} SIGSTOP"

    # ---- the server ---------------------------------------------------------------------------------

    def kill_server(self) -> str:
        """SIGKILL, and up to one and a half leases without it."""
        if self._server_down:
            return ""
        self._server_down = True
        self._server.kill()

        def restart() -> None:
            self._server.restart()
            self._server_down = False

        self._undo_in(self._rng.uniform(0.1, 1.5 * LEASE), restart)
        return "server SIGKILL"

    def suspend_server(self) -> str:
        """SIGSTOP for up to two leases: nobody can beat, everybody looks idle afterwards."""
        if self._server_down:
            return ""
        self._server_down = True
        self._server.suspend()

        def resume() -> None:
            self._server.resume()
            self._server_down = False

        self._undo_in(self._rng.uniform(0.2, 2 * LEASE), resume)
        return "server SIGSTOP"

    def _meddle(self, name: str, *commands: Command) -> str:
        return name if not self._server_down and self._done(*commands) else ""

    def _done(self, *commands: Command) -> bool:
        replies = self.ask(*commands)
        return bool(replies) and not any(isinstance(reply, ServerError) for reply in replies)

    def cut_connections(self) -> str:
        """CLIENT KILL of everybody."""
        return self._meddle("CLIENT KILL", ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    def pause_server(self) -> str:
        """CLIENT PAUSE."""
        return self._meddle("CLIENT PAUSE", ("CLIENT", "PAUSE", self._rng.randrange(50, 1000)))

    def delete_receivers(self) -> str:
        """The streams in which clients are told of outcomes."""
        if self._server_down:
            return ""
        (keys, *_) = self.ask(("KEYS", "streamfleet:receiver:*")) or [[]]
        if not isinstance(keys, list) or not keys:
            return ""
        victim = self._rng.choice(keys)
        assert isinstance(victim, bytes), "keys are bytes"
        return self._meddle("receiver DEL", ("DEL", victim))

    def destroy_group(self) -> str:
        """XGROUP DESTROY: nobody owns anything any more, and everything is delivered again."""
        stream = queue_keys(self._rng.choice(QUEUES)).stream
        return self._meddle("XGROUP DESTROY", ("XGROUP", "DESTROY", stream, GROUP))

    def delete_consumer(self) -> str:
        """XGROUP DELCONSUMER of one that may be alive: its entries have no owner."""
        if self._server_down:
            return ""
        stream = queue_keys(self._rng.choice(QUEUES)).stream
        (rows, *_) = self.ask(("XINFO", "CONSUMERS", stream, GROUP)) or [[]]
        if not isinstance(rows, list) or not rows:
            return ""
        row = self._rng.choice(rows)
        assert isinstance(row, list), "a row of XINFO"
        name = row[1]
        assert isinstance(name, bytes), "a consumer's name"
        return self._meddle("XGROUP DELCONSUMER", ("XGROUP", "DELCONSUMER", stream, GROUP, name))

    def fill_memory(self) -> str:
        """Out of memory for a second."""
        self._undo_in(1.0, lambda: self._restore(("CONFIG", "SET", "maxmemory", 0)))
        return self._meddle("OOM", ("CONFIG", "SET", "maxmemory", 1))

    def take_permission(self) -> str:
        """An ACL right is missing for a moment: who needs it stops with the reason, and is started again."""
        denial = Denial(DENIED)
        self._fleet.denials.append(denial)

        def given_back() -> None:
            denial.end = time.monotonic()

        self._undo_in(0.5, lambda: self._restore(("ACL", "SETUSER", "default", "+@all"), given_back))
        return self._meddle(f"ACL -{DENIED.lower()}", ("ACL", "SETUSER", "default", f"-{DENIED.lower()}"))

    def _restore(self, command: Command, done: Callable[[], None] = lambda: None) -> None:
        """Until it succeeds. A server that was killed meanwhile has forgotten the change, and is told in vain."""
        if not self._server_down and self._done(command):
            done()
        else:
            self._undo_in(0.2, lambda: self._restore(command, done))

"""One thread per link: what stands between a machine's links and a driver's connections.

All calls into a machine are made under the one lock of its `Loops`; exchanges are made outside of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from streamfleet.logs import report
from streamfleet_core.connection import Connection, Driver
from streamfleet_core.errors import ConnectionFailure, OutcomeUnknown, ServerRefused, WrongDriver
from streamfleet_core.events import Event
from streamfleet_core.link import Action, Connect, Disconnect, Exchange, Link, Sleep

LONGEST_WAIT = 3600.0
"""Seconds; `threading` refuses to wait for ever in numbers."""


class Machine(Protocol):
    """What a client machine and a worker machine have in common."""

    kicked: list[Link]

    events: deque[Event]

    def step(self, link: Link, now: float) -> Action:
        """See `Link.step`."""


def check_driver(driver: object) -> Driver:
    """Raises WrongDriver when the object does not serve threads."""
    if isinstance(driver, Driver):
        return driver
    name = type(driver).__name__
    if hasattr(driver, "connect_async"):
        raise WrongDriver(f"{name} does not serve threads: use RedisDriver, ValkeyDriver or MemoryDriver")
    raise WrongDriver(f"expected a driver, got {driver!r:.80}: for instance RedisDriver('redis://localhost:6379')")


class Loop:
    """The thread of one link."""

    def __init__(self, loops: Loops, link: Link) -> None:
        self._loops = loops
        self._link = link
        self.woken = threading.Condition(loops.lock)
        self._connection: Connection | None = None
        self._blocked = False
        self.thread = threading.Thread(target=self._run, name=f"{loops.who}-{link.role.value}", daemon=True)

    @property
    def to_end(self) -> bool:
        """Has its link nothing to do any more? The lock is held."""
        return self._link.stopped or self._link.duty.finished()

    def interrupt(self) -> None:
        """End a blocking read. The lock is held."""
        if self._blocked and self._connection is not None:
            self._connection.interrupt()

    def _run(self) -> None:
        try:
            while True:
                action = self._next_action()
                if type(action) is Exchange:
                    self._exchange(action)
                elif type(action) is Connect:
                    self._connect(action)
                elif type(action) is Disconnect:
                    self._hang_up()
                else:
                    return
        finally:
            self._hang_up()
            self._loops.ended(self)

    def _next_action(self) -> Action:
        """The next action that is not to sleep."""
        loops = self._loops
        with loops.lock:
            while True:
                now = monotonic()
                action = loops.machine.step(self._link, now)
                loops.after_step()
                told = loops.tell()
                if type(action) is Sleep:
                    if not told and not self._link.kicked:  # by what its own step has led to
                        self.woken.wait(min(action.until - now, LONGEST_WAIT))
                    continue
                self._blocked = type(action) is Exchange and action.blocking
                return action

    def _connect(self, action: Connect) -> None:
        loops = self._loops
        try:
            connection = loops.driver.connect(action.timeout)
        except (ConnectionFailure, ServerRefused) as error:
            with loops.lock:
                self._link.connect_failed(error, monotonic())
                loops.after_step()
        else:
            with loops.lock:
                self._connection = connection
                self._link.connected(connection.identity, monotonic())
                loops.after_step()

    def _exchange(self, action: Exchange) -> None:
        loops, connection = self._loops, self._connection
        assert connection is not None, "an exchange without a connection"
        try:
            replies = connection.exchange(action.commands, action.timeout)
        except ConnectionFailure as error:
            self._hang_up()
            with loops.lock:
                unknown = isinstance(error, OutcomeUnknown)
                self._link.connection_lost(error, outcome_unknown=unknown, now=monotonic())
                loops.after_step()
        else:
            with loops.lock:
                self._blocked = False
                self._link.replies_received(replies, monotonic())
                loops.after_step()

    def _hang_up(self) -> None:
        with self._loops.lock:
            connection, self._connection = self._connection, None
            self._blocked = False
        if connection is not None:
            connection.close()


class Loops:
    """The loops of one machine, and the lock that guards it."""

    def __init__(self, who: str, machine: Machine, driver: Driver, after: Callable[[], None]) -> None:
        self.who = who
        self.machine = machine
        self.driver = driver
        self.lock = threading.Lock()
        self._after = after
        self._loops: dict[Link, Loop] = {}
        self._running = 0
        self.all_ended = threading.Condition(self.lock)

    def start(self, link: Link) -> None:
        """Begin to serve a link. The lock is held."""
        loop = self._loops[link] = Loop(self, link)
        self._running += 1
        loop.thread.start()

    def after_step(self) -> None:
        """Something was told to the machine: wake whom it concerns. The lock is held."""
        kicked = self.machine.kicked
        while kicked:
            loop = self._loops.get(kicked.pop())
            if loop is not None:
                loop.woken.notify()
        self._after()

    def tell(self) -> bool:
        """Log what the machine tells. The lock is held, and released meanwhile; False: there was nothing.

        A log handler may be slow, and it may enqueue: beats must not wait for it, nor it for this lock.
        """
        events = self.machine.events
        if not events:
            return False
        told = list(events)
        events.clear()
        self.lock.release()
        try:
            report(self.who, told)
        finally:
            self.lock.acquire()
        return True

    def interrupt_finished(self) -> None:
        """End blocking reads that serve nothing any more. The lock is held."""
        for loop in self._loops.values():
            if loop.to_end:
                loop.interrupt()
                loop.woken.notify()

    def ended(self, loop: Loop) -> None:
        """A loop's thread ends."""
        with self.lock:
            self._running -= 1
            self._after()
            self.all_ended.notify_all()

    @property
    def running(self) -> bool:
        """Does any loop still run? The lock is held."""
        return self._running > 0

    def join(self) -> None:
        """Wait for the threads, all of which are about to end."""
        for loop in list(self._loops.values()):
            loop.thread.join()

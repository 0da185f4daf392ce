"""One thread per link: what stands between a machine's links and a driver's connections.

All calls into a machine are made under the one lock of its `Loops`; exchanges are made outside of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from streamfleet.sync.telling import Teller
from streamfleet_core.connection import Connection, Driver
from streamfleet_core.errors import ConnectionFailure, OutcomeUnknown, ServerRefused, WrongDriver
from streamfleet_core.events import Event
from streamfleet_core.link import Action, Connect, Disconnect, Exchange, Link, Sleep

LONGEST_WAIT = 3600.0
"""Seconds; `threading` refuses to wait for ever in numbers."""
LINGER = 1.0
"""Seconds that threads get at the end to notice it; one that opens a connection then is left to itself."""
TELLING = 2.0
"""Seconds that log handlers get at the end for what has not been told."""


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
        self.ended = False
        self.thread = threading.Thread(target=self._run, name=f"{loops.who}-{link.role.value}", daemon=True)

    @property
    def begun(self) -> bool:
        """Has its thread begun to run? Not when its start was interrupted, or refused."""
        return self.thread.ident is not None

    @property
    def to_end(self) -> bool:
        """Has its link nothing to do any more? The lock is held."""
        return self._link.stopped or self._link.duty.finished()

    def interrupt(self) -> None:
        """End a blocking read. The lock is held."""
        if self._blocked:
            self.cut()

    def cut(self) -> None:
        """End whatever exchange is in flight. The lock is held."""
        if self._connection is not None:
            self._connection.interrupt()

    def _run(self) -> None:
        try:
            self._drive()
        except BaseException as error:
            self._loops.broke(self._link, error)
            raise
        finally:
            try:
                self._hang_up()
            finally:
                self._loops.ended(self)

    def _drive(self) -> None:
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

    def _next_action(self) -> Action:
        """The next action that is not to sleep."""
        loops = self._loops
        with loops.lock:
            while True:
                now = monotonic()
                action = loops.machine.step(self._link, now)
                loops.after_step()
                if type(action) is Sleep:
                    if not self._link.kicked:  # by what its own step has led to
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
        # Of the kind that knows its owner, though nobody takes it twice: when Ctrl-C comes while a wait takes its
        # lock again, a plain one would be released under another thread that has it.
        self.lock = threading.RLock()
        self.defect: ServerRefused | None = None
        """What has ended a thread that should have gone on, if so."""
        self._after = after
        self._loops: dict[Link, Loop] = {}
        self.all_ended = threading.Condition(self.lock)
        self._teller = Teller(who, machine.events, self.lock)

    def start(self, link: Link) -> None:
        """Begin to serve a link, unless that has begun. The lock is held."""
        loop = self._loops.get(link)
        if loop is None:
            loop = self._loops[link] = Loop(self, link)
        if not loop.begun:
            self._teller.begin()
            loop.thread.start()

    def after_step(self) -> None:
        """Something was told to the machine: wake whom it concerns. The lock is held.

        Ctrl-C may come at any point of it: what is not done then is left to be done the next time.
        """
        self._after()
        kicked = self.machine.kicked
        while kicked:
            loop = self._loops.get(kicked[-1])
            if loop is not None:
                loop.woken.notify()
            kicked.pop()
        if self.machine.events:
            self._teller.wake()

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait on a condition of the lock. The lock is held afterwards, also when Ctrl-C has ended the wait.

        It may come right after the lock was given up, before `threading` has made sure that it is taken again.
        """
        try:
            condition.wait(timeout)
        except BaseException:
            if not condition._is_owned():  # type: ignore[attr-defined]
                self.lock.acquire()
            raise

    def interrupt_finished(self) -> None:
        """End blocking reads that serve nothing any more. The lock is held."""
        for loop in self._loops.values():
            if loop.to_end:
                loop.interrupt()
                loop.woken.notify()

    def cut(self) -> None:
        """The time is up: stop all links, and end what is in flight on them. The lock is held.

        Whether that was applied is not known then, and nobody here sends it again.
        """
        for link, loop in self._loops.items():
            link.stop()
            loop.cut()
            loop.woken.notify()

    def broke(self, link: Link, error: BaseException) -> None:
        """A thread dies of a defect, here or in the driver: all ends in order, and says why."""
        defect = ServerRefused(
            f"the thread {threading.current_thread().name} has died of a defect: {error!r:.500}"
        )
        defect.__cause__ = error
        with self.lock:
            self.defect = self.defect or defect
            link.refuse(defect)
            try:
                self.after_step()
            except BaseException:
                self.cut()  # the machine cannot even stop
                raise

    def ended(self, loop: Loop) -> None:
        """A loop's thread ends."""
        with self.lock:
            loop.ended = True
            self.all_ended.notify_all()
            self.after_step()

    @property
    def running(self) -> bool:
        """Does any loop still run? The lock is held."""
        return any(loop.begun and not loop.ended for loop in self._loops.values())

    def finish(self) -> None:
        """Wait for the threads that have ended, and until all is told."""
        for loop in list(self._loops.values()):
            if loop.ended:
                loop.thread.join(LINGER)
        self._teller.end(TELLING)

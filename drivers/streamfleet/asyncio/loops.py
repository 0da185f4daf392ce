"""One task per link: what stands between a machine's links and a driver's connections.

Everything happens on the thread of one event loop, so that a machine needs no lock: between two awaits nobody
else calls it.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol

from streamfleet.asyncio.tasks import Tasks
from streamfleet.logs import report
from streamfleet_core.connection import AsyncConnection, AsyncDriver
from streamfleet_core.errors import ConnectionFailure, OutcomeUnknown, ServerRefused
from streamfleet_core.events import Event
from streamfleet_core.link import Action, Connect, Disconnect, Exchange, Link, Sleep

Wakeup = asyncio.Future[None]


class Machine(Protocol):
    """What a client machine and a worker machine have in common."""

    kicked: list[Link]

    events: deque[Event]

    def step(self, link: Link, now: float) -> Action:
        """See `Link.step`."""


def wake(sleeper: Wakeup | None) -> None:
    """End a wait; nothing happens when it has ended already."""
    if sleeper is not None and not sleeper.done():
        sleeper.set_result(None)


class Loop:
    """The task of one link."""

    def __init__(self, loops: Loops, link: Link) -> None:
        self._loops = loops
        self._link = link
        self._connection: AsyncConnection | None = None
        self._blocked = False
        self._sleeper: Wakeup | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.finished = False
        """Has its link finished? Otherwise a task that ends was cancelled, or died of a defect."""

    def wake(self) -> None:
        """End its sleep."""
        wake(self._sleeper)

    @property
    def to_end(self) -> bool:
        """Has its link nothing to do any more?"""
        return self._link.stopped or self._link.duty.finished()

    def interrupt(self) -> None:
        """End a blocking read."""
        if self._blocked and self._connection is not None:
            self._connection.interrupt()

    async def run(self) -> None:
        """Serve the link until it has finished."""
        loops, link = self._loops, self._link
        step, time = loops.machine.step, loops.time
        while True:
            action = step(link, time())
            loops.after_step()
            kind = type(action)
            if kind is Exchange:
                await self._exchange(action)  # type: ignore[arg-type]
            elif kind is Sleep:
                await self._sleep(action.until)  # type: ignore[union-attr]
            elif kind is Connect:
                await self._connect(action)  # type: ignore[arg-type]
            elif kind is Disconnect:
                self._hang_up()
            else:
                self.finished = True
                return

    def close(self) -> None:
        """Hang up for good."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._hang_up()

    async def _sleep(self, until: float) -> None:
        if self._link.kicked:
            return  # right after the step that sent it to sleep
        loop = self._loops.loop
        self._sleeper = loop.create_future()
        # An alarm set earlier is left standing when it rings in time: to ring for nothing is cheaper than a timer
        # for each sleep.
        if until < inf and (self._alarm is None or self._alarm.when() > until):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(until, self._ring)
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def _ring(self) -> None:
        self._alarm = None
        wake(self._sleeper)

    async def _connect(self, action: Connect) -> None:
        loops = self._loops
        try:
            self._connection = await loops.driver.connect_async(action.timeout)
        except (ConnectionFailure, ServerRefused) as error:
            self._link.connect_failed(error, loops.time())
        else:
            self._link.connected(self._connection.identity, loops.time())
        loops.after_step()

    async def _exchange(self, action: Exchange) -> None:
        loops, connection = self._loops, self._connection
        assert connection is not None, "an exchange without a connection"
        self._blocked = action.blocking
        try:
            replies = await connection.exchange(action.commands, action.timeout)
        except ConnectionFailure as error:
            self._hang_up()
            unknown = isinstance(error, OutcomeUnknown)
            self._link.connection_lost(error, outcome_unknown=unknown, now=loops.time())
        except CancelledError:
            self._hang_up()  # the reply would answer the next exchange
            if loops.tasks.alive:  # somebody cancels all there is: the link goes on in a fresh task
                lost = OutcomeUnknown("the exchange was cancelled from outside")
                self._link.connection_lost(lost, outcome_unknown=True, now=loops.time())
            raise
        else:
            self._blocked = False
            self._link.replies_received(replies, loops.time())
        loops.after_step()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        self._blocked = False
        if connection is not None:
            connection.close()


class Loops:
    """The loops of one machine, and those who wait for something to change."""

    def __init__(self, who: str, machine: Machine, driver: AsyncDriver, after: Callable[[], None]) -> None:
        self.who = who
        self.machine = machine
        self.driver = driver
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self.tasks = Tasks()
        self._after = after
        self._loops: dict[Link, Loop] = {}
        self._running = 0
        self._watchers: set[Wakeup] = set()

    def start(self, link: Link) -> None:
        """Begin to serve a link."""
        if not self.tasks.alive:
            return
        loop = self._loops[link] = Loop(self, link)
        self._running += 1
        self._spawn(loop, link)

    def _spawn(self, loop: Loop, link: Link) -> None:
        self.tasks.spawn(loop.run, f"{self.who}-{link.role.value}", lambda: self._ended(loop, link))

    def _ended(self, loop: Loop, link: Link) -> None:
        """A loop's task has ended. Cancelled by others, even before it began, it is replaced."""
        if self.tasks.alive and not loop.finished:
            self._spawn(loop, link)
            return
        loop.close()
        self._running -= 1
        self._after()
        self.wake_watchers()

    def wake_kicked(self) -> None:
        """Something was told to the machine: wake the loops that it concerns, and log what it tells."""
        kicked = self.machine.kicked
        while kicked:
            loop = self._loops.get(kicked.pop())
            if loop is not None:
                loop.wake()
        events = self.machine.events
        if events:
            report(self.who, list(events))
            events.clear()

    def after_step(self) -> None:
        """As `wake_kicked`, and let the owner look at what has changed."""
        self.wake_kicked()
        self._after()
        if self._watchers:
            self.wake_watchers()

    def wake_watchers(self) -> None:
        """Let those in `wait_until` look again."""
        for watcher in self._watchers:
            wake(watcher)

    async def pause(self, waiters: set[Wakeup], deadline: float) -> None:
        """Wait until woken, or until ``deadline``, as one of ``waiters``."""
        sleeper: Wakeup = self.loop.create_future()
        alarm = self.loop.call_at(deadline, wake, sleeper) if deadline < inf else None
        waiters.add(sleeper)
        try:
            await sleeper
        finally:
            waiters.discard(sleeper)
            if alarm is not None:
                alarm.cancel()

    async def wait_until(self, condition: Callable[[], bool], deadline: float = inf) -> bool:
        """Wait for a condition of the machine. False: the deadline (of `time`) has passed."""
        while not condition():
            if self.time() >= deadline:
                return False
            await self.pause(self._watchers, deadline)
        return True

    def interrupt_finished(self) -> None:
        """End blocking reads that serve nothing any more."""
        for loop in self._loops.values():
            if loop.to_end:
                loop.interrupt()
                loop.wake()

    @property
    def running(self) -> bool:
        """Does any loop still run?"""
        return self._running > 0

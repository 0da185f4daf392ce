"""The loop of one link, as the shells drive it, on the virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core.connection import Command, Reply, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown
from streamfleet_core.link import Connect, Disconnect, Exchange, Link, Role, Sleep

from .network import Wire

if TYPE_CHECKING:
    from .processes import Process

WAKE = 0.0002
"""Seconds from a kick to the step that it causes."""
FOREVER = float("inf")


class LinkLoop:
    """Mirrors `streamfleet.sync.loops.Loop`: a step, then what it says, then the next."""

    def __init__(self, process: Process, link: Link) -> None:
        self.process = process
        self.link = link
        self.name = f"{process.name} {link.role.value}"
        self.wire: Wire | None = None
        self.ended = False
        self.quiet_since = FOREVER
        """Since when its connection stands without trouble (virtual seconds)."""
        self.broke_at = -1.0
        """When it last lost an exchange whose outcome is unknown (virtual seconds)."""
        self._random = process.world.random(self.name)
        self._sleep = 0
        self._sleeping = False
        self._blocked = False
        self._exchange = 0
        self._commands: list[Command] = []

    def start(self) -> None:
        """Begin."""
        self.process.world.engine.after(WAKE * self._random.random(), self.run)

    def kick(self) -> None:
        """The machine wants it to look again."""
        if self._sleeping:
            self._sleeping = False
            self.process.world.engine.after(WAKE * self._random.random(), self.run)

    @property
    def to_end(self) -> bool:
        """See `streamfleet.sync.loops.Loop.to_end`."""
        return self.link.stopped or self.link.duty.finished()

    def interrupt(self) -> None:
        """End a blocking read."""
        if self._blocked:
            self._blocked = False
            self.process.world.engine.after(WAKE, self.failed, self._exchange, True, "interrupted")

    def run(self) -> None:
        """One step, and what comes of it."""
        process = self.process
        if self.ended or not process.awake(self.run):
            return
        self._sleeping = False
        while True:
            process.turn()
            action = process.machine.step(self.link, process.now)
            process.after_step()
            if type(action) is not Disconnect:
                break
            self._hang_up()
        if type(action) is Exchange:
            self._begin(action)
        elif type(action) is Sleep:
            self._sleep += 1
            self._sleeping = True
            if action.until < FOREVER:
                process.world.engine.at(process.world_time(action.until) + 1e-6, self._wake, self._sleep)
        elif type(action) is Connect:
            self._connect()
        else:
            self._hang_up()
            self.ended = True
            process.loop_ended()

    def _wake(self, sleep: int) -> None:
        if self._sleeping and sleep == self._sleep:
            self._sleeping = False
            self.run()

    # ---- connecting ---------------------------------------------------------------------------------

    def _connect(self) -> None:
        world = self.process.world
        network = world.server.network
        world.engine.after(network.latency * (1 + self._random.random()), self._connected)

    def _connected(self) -> None:
        process = self.process
        if not process.awake(self._connected):
            return
        world = process.world
        network = world.server.network
        if not world.server.up or process.partitioned or self._random.random() < network.connect_fails:
            self.link.connect_failed(NotSent("cannot connect"), process.now)
        else:
            self.wire = Wire(world.server, self, self._random, world.observer)
            self.quiet_since = world.engine.now
            identity = ServerIdentity("memory", "7.2.0", client_id=self.wire.session.client_id)
            self.link.connected(identity, process.now)
        process.after_step()
        self.run()

    # ---- exchanging ---------------------------------------------------------------------------------

    def _begin(self, action: Exchange) -> None:
        assert self.wire is not None, "an exchange without a connection"
        self._exchange += 1
        self._commands = action.commands
        self._blocked = action.blocking
        if self.process.partitioned:
            self.disturbed()
            self.process.world.engine.after(action.timeout, self.timed_out, self._exchange)
            return
        self.wire.send(self._exchange, action.commands, action.timeout, blocking=action.blocking)

    def replied(self, exchange: int, replies: list[Reply]) -> None:
        """See `network.Owner`."""
        process = self.process
        if exchange != self._exchange or self.wire is None or process.partitioned:
            return
        if not process.awake(self.replied, exchange, replies):
            return
        self.wire.finished(exchange)
        self._exchange += 1
        self._blocked = False
        if self.link.role is Role.PUBLISH:
            process.world.observer.markers.heard(process, self._commands, replies)
        self.link.replies_received(replies, process.now)
        process.after_step()
        self.run()

    def timed_out(self, exchange: int) -> None:
        """See `network.Owner`."""
        if exchange == self._exchange and self.wire is not None:
            if not self.process.patient(self.timed_out, exchange):
                return
            self.failed(exchange, True, "no reply in time")

    def failed(self, exchange: int, unknown: bool, why: str) -> None:
        """See `network.Owner`."""
        process = self.process
        if (
            exchange != self._exchange
            or self.wire is None
            or not process.awake(self.failed, exchange, unknown, why)
        ):
            return
        self._exchange += 1
        self._hang_up()
        if unknown:
            self.broke_at = process.world.engine.now
        process.world.trace.note(self.name, why)
        error = OutcomeUnknown(why) if unknown else NotSent(why)
        self.link.connection_lost(error, outcome_unknown=unknown, now=process.now)
        process.after_step()
        self.run()

    def disturbed(self) -> None:
        """See `network.Owner`."""
        self.quiet_since = FOREVER

    def cut(self) -> None:
        """The network breaks the connection."""
        if self.wire is not None:
            self.wire.cut()

    def _hang_up(self) -> None:
        self._blocked = False
        self.quiet_since = FOREVER
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.close()

    def abandon(self) -> None:
        """The process is gone: its sockets are closed by the system."""
        self.ended = True
        self._hang_up()

"""One transaction of the settle link: what goes into it, and whom each command is for (protocol, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from streamfleet_core import outcomes
from streamfleet_core.connection import Command, Reply
from streamfleet_core.keys import GROUP
from streamfleet_core.state import RELEASED_IDLE_MS, Delivery, Phase, Verdict

# CPython 3.11 finds members through a descriptor: slow where it is done for each task.
_COMMITTING, _RELEASING, _COMPLETED = Phase.COMMITTING, Phase.RELEASING, Verdict.COMPLETED
Options: TypeAlias = tuple[str | int, ...]
_ALIVE = (Phase.READY, Phase.RUNNING, Phase.SETTLING)


@dataclass(slots=True)
class Commit:
    """A transaction in the making or in flight."""

    commands: list[Command] = field(default_factory=list)
    marks: list[Delivery | None] = field(default_factory=list)
    """For each command, the delivery whose task it carries on: it must not fail for that one."""
    settled: list[Delivery] = field(default_factory=list)
    released: list[Delivery] = field(default_factory=list)
    beats: list[Delivery] = field(default_factory=list)
    claims: list[int] = field(default_factory=list)
    """Positions of the beats' XCLAIMs among the commands."""
    rescued: set[Delivery] = field(default_factory=set)
    """Those whose transfer failed: they end here, but not as their verdict says."""
    sent_at: float = 0.0

    def add(self, commands: list[Command], mark: Delivery | None = None) -> None:
        """Append commands."""
        self.commands.extend(commands)
        self.marks.extend([mark] * len(commands))

    def renewed(self, results: list[Reply]) -> set[Reply]:
        """The entry ids that the beats have claimed."""
        renewed: set[Reply] = set()
        for position in self.claims:
            reply = results[position - 1]
            renewed.update(reply if isinstance(reply, list) else ())
        return renewed


def build(chosen: list[Delivery], beats: list[Delivery], consumer: bytes, server_ms: int, now: float) -> Commit:
    """Outcomes and releases of ``chosen``, which are moved into the transaction, and the beats."""
    commit = Commit(sent_at=now)
    commit.add([("MULTI",)])
    ended: dict[str, list[Delivery]] = {}
    for delivery in chosen:
        if delivery.phase is _RELEASING:
            delivery.move(Phase.RETURNING)
            commit.released.append(delivery)
            continue
        delivery.move(_COMMITTING)
        commit.settled.append(delivery)
        ended.setdefault(delivery.queue.keys.queue, []).append(delivery)
        if delivery.verdict is not _COMPLETED or delivery.task.notify:  # type: ignore[union-attr]
            commit.add(outcomes.transfer(delivery, server_ms), delivery)
            commit.add(outcomes.notice(delivery))
    for deliveries in ended.values():
        keys = deliveries[0].queue.keys
        ids = [delivery.entry_id for delivery in deliveries]
        commit.add([("XACK", keys.stream, GROUP, *ids), ("XDEL", keys.stream, *ids)])
    _renew(commit, beats, consumer)
    _give_back(commit, consumer)
    commit.add([("EXEC",)])
    return commit


def _renew(commit: Commit, beats: list[Delivery], consumer: bytes) -> None:
    """Renew, and put the delivery count right: the server counts each read of a consumer's history as one more.

    A task that outlives a few broken connections would otherwise look like one that kills its workers.
    """
    commit.beats = [delivery for delivery in beats if delivery.phase in _ALIVE]
    groups: dict[tuple[bytes, int], list[bytes]] = {}
    for delivery in commit.beats:
        count = delivery.deliveries if delivery.counted else 0
        groups.setdefault((delivery.queue.keys.stream, count), []).append(delivery.entry_id)
    for (stream, count), ids in groups.items():
        commit.claims.append(len(commit.commands))
        options = ("RETRYCOUNT", count) if count else ()
        commit.add([("XCLAIM", stream, GROUP, consumer, 0, *ids, *options, "JUSTID")])


def _give_back(commit: Commit, consumer: bytes) -> None:
    groups: dict[tuple[bytes, Options], list[bytes]] = {}
    for delivery in commit.released:
        group = (delivery.queue.keys.stream, count_back(delivery))
        groups.setdefault(group, []).append(delivery.entry_id)
    for (stream, options), ids in groups.items():
        commit.add([release(stream, consumer, ids, *options)])


def release(stream: bytes, consumer: bytes, ids: list[bytes], *options: str | int) -> Command:
    """Give entries back: idle for so long that others may take them now."""
    return ("XCLAIM", stream, GROUP, consumer, 0, *ids, "IDLE", RELEASED_IDLE_MS, *options, "JUSTID")


def count_back(delivery: Delivery) -> Options:
    """The delivery count with which an entry is given back: one that did not run was not really delivered."""
    if not delivery.counted:
        return ()
    return ("RETRYCOUNT", delivery.deliveries if delivery.ran else delivery.deliveries - 1)

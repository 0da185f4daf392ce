"""What clients and handlers say they did and were told: the other side of what the server's file holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from campaign.logfile import lines_of
from campaign.workload import Order, order_of


@dataclass(slots=True)
class Offer:
    """A task as its client knows it."""

    order: Order
    offered: int
    """Unix ms."""
    client: str
    task_id: str = ""
    accepted: bool = False
    cancelling: bool = False
    """Did the client ask for it back?"""
    answer: str = ""
    """What it was told then."""
    outcome: str = ""
    told: float = 0.0
    """When it was told of the outcome."""

    @property
    def given_back(self) -> bool:
        """Was the client told that it never runs?"""
        return "CANCELLED" in (self.outcome, self.answer)


@dataclass(slots=True)
class Runs:
    """What handlers did for one task, by attempts; the first is 1."""

    started: list[int] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Testimony:
    """All logs."""

    offers: dict[int, Offer] = field(default_factory=dict)
    """By number; without those that a full buffer did not take."""
    finished: dict[str, int] = field(default_factory=dict)
    """Clients that have ended in order, and how many tasks they could not send."""
    runs: dict[str, Runs] = field(default_factory=dict)

    def read_client(self, path: Path) -> None:
        """One client's log (see `client_process`)."""
        client = ""
        for kind, *words in lines_of(path):
            if kind == "client":
                client = words[0]
            elif kind == "finished":
                self.finished[client] = int(words[0])
            elif kind == "offered":
                self.offers[int(words[0])] = Offer(order_of(*words[2:]), int(words[1]), client)
            elif kind == "full":
                self.offers.pop(int(words[0]))
            elif kind in ("accepted", "cancelling", "cancelled", "outcome"):
                self._told(kind, words)

    def _told(self, kind: str, words: list[str]) -> None:
        offer = self.offers[int(words[0])]
        offer.task_id = words[1]
        if kind == "accepted":
            offer.accepted = True
        elif kind == "cancelling":
            offer.cancelling = True
        elif kind == "cancelled":
            offer.answer = words[2]
        else:
            offer.outcome, offer.told = words[2], int(words[3])

    def read_handlers(self, path: Path) -> None:
        """One worker's log (see `worker_process`)."""
        for kind, *words in lines_of(path):
            if kind == "start":
                self.runs.setdefault(words[0], Runs()).started.append(int(words[1]))
            elif kind == "end":
                self.runs.setdefault(words[0], Runs()).ended.add(int(words[1]))

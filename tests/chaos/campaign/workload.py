"""What the campaign's clients enqueue, and what must become of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

QUEUES = ("mail", "img{7}")
"""One plain name, one with a hash tag of its own."""

KINDS = (
    ("ok", 800),
    ("slow", 10),
    ("fail-once", 60),
    ("fail", 10),
    ("later", 30),
    ("refuse", 10),
    ("crash", 1),
)

ATTEMPTS = {"ok": 1, "slow": 1, "fail-once": 2, "fail": 3, "later": 2, "refuse": 1, "crash": 1}
"""How often a task of each kind begins anew before it ends, whatever happens to workers meanwhile."""
DEAD = ("fail", "refuse")
"""Kinds that end as dead letters; all others complete."""


@dataclass(frozen=True, slots=True)
class Order:
    """One task as a client is to enqueue it."""

    queue: str
    payload: str
    tracked: bool
    options: dict[str, Any] = field(default_factory=dict)
    cancel_after: float | None = None
    """Seconds after which the client takes it back, if it still can."""

    @property
    def kind(self) -> str:
        """What its handler is to do."""
        kind: str = json.loads(self.payload)["do"]
        return kind

    def words(self) -> tuple[object, ...]:
        """For a log; `order_of` reads them again."""
        return self.queue, int(self.tracked), json.dumps(self.options, separators=(",", ":")), self.payload


def order_of(queue: str, tracked: str, options: str, payload: str) -> Order:
    """An order from the words of a log."""
    return Order(queue, payload, tracked == "1", json.loads(options))


def order(number: int, rng: Random) -> Order:
    """The next task."""
    kind = rng.choices([name for name, _ in KINDS], [weight for _, weight in KINDS])[0]
    payload = json.dumps({"n": number, "do": kind, "pad": "x" * rng.randrange(60)}, separators=(",", ":"))
    options: dict[str, Any] = {}
    cancel_after = None
    chance = rng.random()
    if kind in ("fail", "fail-once"):
        options = {"max_retries": 2, "retry_delay": rng.choice((0, 0.2))}
    elif chance < 0.07:
        delay = rng.random()
        options = {"delay": delay}
        if rng.random() < 0.4:  # in the buffer, in the schedule, and about when it is moved into the stream
            cancel_after = rng.choice((0.0, delay / 2, delay - 0.05, delay + 0.1))
    elif chance < 0.09:
        options = {"expires_in": rng.choice((0.5, 30))}
    elif chance < 0.095:
        cancel_after = 0.0
    return Order(rng.choice(QUEUES), payload, rng.random() < 0.3, options, cancel_after)

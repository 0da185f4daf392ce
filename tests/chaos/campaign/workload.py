"""What the campaign's clients enqueue."""

from __future__ import annotations

import json
from random import Random
from typing import Any

QUEUES = ("mail", "img{7}")
"""One plain name, one with a hash tag of its own."""

KINDS = (
    ("ok", 800),
    ("slow", 10),
    ("fail once", 60),
    ("fail", 10),
    ("later", 30),
    ("refuse", 10),
    ("crash", 1),
)


def order(number: int, rng: Random) -> tuple[str, str, bool, dict[str, Any]]:
    """Queue, payload, whether to track, and options of one task."""
    kind = rng.choices([name for name, _ in KINDS], [weight for _, weight in KINDS])[0]
    payload = json.dumps({"n": number, "do": kind, "pad": "x" * rng.randrange(60)}, separators=(",", ":"))
    options: dict[str, Any] = {}
    if kind in ("fail", "fail once"):
        options = {"max_retries": 2, "retry_delay": rng.choice((0, 0.2))}
    elif rng.random() < 0.05:
        options = {"delay": rng.random()}
    elif rng.random() < 0.02:
        options = {"expires_in": rng.choice((0.5, 30))}
    return rng.choice(QUEUES), payload, rng.random() < 0.3, options

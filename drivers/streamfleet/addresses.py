"""From a host's name to its addresses, and a deadline that they share."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from streamfleet.deadline import Deadline


def is_address(host: str) -> bool:
    """Is it an address, which need not be looked up?"""
    try:
        socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True


def addresses_of(host: str) -> list[str]:
    """The addresses of a name, in the order in which they should be tried. May block for long.

    Raises OSError, and UnicodeError for a name that cannot be asked for.
    """
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return [f"{place[0]}%{place[3]}" if len(place) == 4 and place[3] else str(place[0]) for *_, place in found]


def shares(places: Sequence[str], deadline: Deadline) -> Iterator[tuple[str, float]]:
    """Each place, and its seconds: an equal part of what is left, so that a silent one leaves time for others.

    Ends when no time is left.
    """
    for at, place in enumerate(places):
        if left := deadline.left():
            yield place, left / (len(places) - at)

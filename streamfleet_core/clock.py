"""The server's clock as seen from here.

Due times and expiries are judged by the server's TIME, so that the clocks of clients and workers need not
agree. Between two samples it is extrapolated by the local monotonic clock.

A sample tells only that the server read its clock at some time between request and reply. When the server was
slow that is a wide span; so a sample is not believed more than those before it that agree with it and say more.
"""

from __future__ import annotations


class ServerClock:
    """Maps local monotonic seconds to the server's Unix milliseconds.

    ``wall_ms`` is the local wall clock at monotonic ``now``; it serves until the server has been asked.
    """

    __slots__ = ("_high", "_low", "_offset_ms", "synchronised")

    def __init__(self, wall_ms: float, now: float) -> None:
        self._offset_ms = self._low = self._high = wall_ms - now * 1000.0
        self.synchronised = False

    def observed(self, server_ms: int, sent: float, received: float) -> None:
        """Take a sample: TIME answered ``server_ms`` to a request sent and received at these seconds."""
        low, high = server_ms - received * 1000.0, server_ms - sent * 1000.0
        if self.synchronised and low <= self._high and self._low <= high:
            low, high = max(low, self._low), min(high, self._high)
        self._low, self._high = low, high
        self._offset_ms = (low + high) / 2
        self.synchronised = True

    def ms(self, now: float) -> int:
        """The server's Unix time in ms at local monotonic ``now`` (seconds)."""
        return int(now * 1000.0 + self._offset_ms)

    def at_least_ms(self, now: float) -> int:
        """The same, and surely not later than the server's own."""
        return int(now * 1000.0 + self._low)

    def at_most_ms(self, now: float) -> int:
        """The same, and surely not earlier than the server's own."""
        return int(now * 1000.0 + self._high)

    def local(self, server_ms: float) -> float:
        """The local monotonic time (seconds) at which the server's clock shows ``server_ms``."""
        return (server_ms - self._offset_ms) / 1000.0

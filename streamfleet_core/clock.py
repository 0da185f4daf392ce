"""The server's clock as seen from here.

Due times and expiries are judged by the server's TIME, so that the clocks of clients and workers need not
agree. Between two samples it is extrapolated by the local monotonic clock.
"""

from __future__ import annotations


class ServerClock:
    """Maps local monotonic seconds to the server's Unix milliseconds.

    ``wall_ms`` is the local wall clock at monotonic ``now``; it serves until the server has been asked.
    """

    __slots__ = ("_offset_ms", "synchronised")

    def __init__(self, wall_ms: float, now: float) -> None:
        self._offset_ms = wall_ms - now * 1000.0
        self.synchronised = False

    def observed(self, server_ms: int, sent: float, received: float) -> None:
        """Take a sample: TIME answered ``server_ms`` to a request sent and received at these seconds."""
        self._offset_ms = server_ms - (sent + received) * 500.0
        self.synchronised = True

    def ms(self, now: float) -> int:
        """The server's Unix time in ms at local monotonic ``now`` (seconds)."""
        return int(now * 1000.0 + self._offset_ms)

    def local(self, server_ms: float) -> float:
        """The local monotonic time (seconds) at which the server's clock shows ``server_ms``."""
        return (server_ms - self._offset_ms) / 1000.0

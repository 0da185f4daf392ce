"""One client's way through the fault proxy: its connection, the server connection for it, its faults.

What one read from the client brings is a *chunk*; as a rule that is the pipeline that the client wrote in
one go. Commands and replies are counted, so a link knows when the server has answered everything. A chunk
that a fault is to strike waits until that is so: the replies to earlier requests reach the client whole, and
from there on each byte from the server belongs to the struck chunk.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from streamfleet_conformance.faults import Commands, Fault, FaultBook, Injection, names_of
from streamfleet_conformance.framing import Frames

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
READ_SIZE = 1 << 17
HIGH_WATER = 1 << 20
"""Bytes kept for one side above which nothing more is read from the other."""


class Timers:
    """Actions to take later; the loop asks how long it may sleep."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._numbers), action))

    def wait(self) -> float | None:
        """Seconds until the next action, None when there is none."""
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def run(self) -> None:
        while self._heap and self._heap[0][0] <= time.monotonic():
            heapq.heappop(self._heap)[2]()


class Peer:
    """One end of a link: a socket, and the bytes that it has not taken yet."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.out = bytearray()
        self.gone = False
        """The other side has closed, or the connection broke."""
        self.finishing = False
        """What is in ``out`` is the last to be sent."""
        self.closed = False
        self._sock = sock
        self._selector = selector
        self._watched = 0

    def receive(self) -> bytes:
        """What has arrived; empty when nothing has, or nothing ever will (then ``gone``)."""
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.gone = not data
        return data

    def send(self, data: bytes | bytearray) -> None:
        self.out += data
        self.flush()

    def flush(self) -> None:
        if not self.out or self.gone:
            return
        try:
            del self.out[: self._sock.send(self.out)]
        except BlockingIOError:
            return
        except OSError:
            self.gone = True

    def hang_up(self) -> None:
        """Tell the other side that nothing more comes, and go on to read what it still has to say."""
        self.finishing = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.gone = True

    def watch(self, mask: int, ready: Callable[[int], None]) -> None:
        """Have ``ready`` called when the socket can be read or written, as ``mask`` says."""
        if mask == self._watched:
            return
        if not mask:
            self._selector.unregister(self._sock)
        elif self._watched:
            self._selector.modify(self._sock, mask, ready)
        else:
            self._selector.register(self._sock, mask, ready)
        self._watched = mask

    def close(self) -> None:
        if not self.closed:
            if self._watched:
                self._selector.unregister(self._sock)
            self._sock.close()
            self.closed = True


@dataclass(slots=True)
class Strike:
    """A fault on its way."""

    injection: Injection
    names: tuple[bytes, ...]
    replies: int
    """Replies to the struck chunk that have not come."""
    reply: bytearray = field(default_factory=bytearray)
    """What is held back of them."""
    holding: bool = False
    """SLOW has begun to hold them back."""


@dataclass(slots=True)
class Late:
    """A request that is delivered late."""

    data: bytes
    commands: int
    answered: Future[bool] = field(default_factory=Future)
    """True when the server has answered it, False when the connection ended before."""
    released: bool = False


class Link:
    """A client and its server connection. Used in the proxy's thread alone."""

    def __init__(
        self,
        client: Peer,
        server: Peer,
        book: FaultBook,
        timers: Timers,
        ended: Callable[[Link], None],
    ) -> None:
        self.client, self.server = client, server
        self.late: Late | None = None
        self._book, self._timers, self._ended = book, timers, ended
        self._requests, self._replies = Frames(), Frames()
        self._owed = 0
        self._frozen = False
        self._waiting: tuple[Injection, Commands, bytes] | None = None
        """A chunk that is to be struck once the server owes nothing."""
        self._strike: Strike | None = None
        self._at_end: Callable[[], None] | None = None
        self.review()

    def client_ready(self, mask: int) -> None:
        if self.client.closed:  # by an earlier event of the same round
            return
        if mask & WRITE:
            self.client.flush()
        if mask & READ and (data := self.client.receive()):
            self._request(data)
        self.review()

    def server_ready(self, mask: int) -> None:
        if self.server.closed:
            return
        if mask & WRITE:
            self.server.flush()
        if mask & READ and (data := self.server.receive()):
            self._reply(data)
        self.review()

    def cut(self) -> None:
        """Cut the client off. What it has sent still reaches the server; what is kept for later stays so."""
        self.client.close()
        self.review()

    def freeze(self, frozen: bool) -> None:
        """Let no byte pass, or let them pass again."""
        self._frozen = frozen
        self.review()

    def release(self) -> None:
        """Deliver the request that was kept for later."""
        late = self.late
        if late is not None and not late.released and not self.server.closed:
            late.released = True
            self._forward(late.data, late.commands)
            self.review()

    def close(self) -> None:
        """Close both ends at once."""
        self.client.close()
        self.server.close()
        self.review()

    def review(self) -> None:
        """Draw the conclusions from what has become of the two ends, and watch what is to be watched."""
        client, server = self.client, self.server
        if server.gone:
            server.close()
            client.finishing = self._strike is None or not self._strike.holding
        if not client.closed and (client.gone or (client.finishing and not client.out)):
            client.close()
        if client.closed:
            self._after_the_client()
        if client.closed and server.closed:
            self._finish()
            return
        if not client.closed:
            client.watch(self._client_mask(), self.client_ready)
        if not server.closed:
            server.watch(self._server_mask(), self.server_ready)

    def _after_the_client(self) -> None:
        self._withdraw()
        late, server = self.late, self.server
        if late is not None and late.released and not self._owed:
            self.late = None
            late.answered.set_result(True)
        if self.late is None and not server.closed and not server.out and not server.finishing:
            server.hang_up()
            if server.gone:
                server.close()

    def _finish(self) -> None:
        late, self.late = self.late, None
        if late is not None:
            late.answered.set_result(False)
        at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()
        self._ended(self)

    def _withdraw(self) -> None:
        """The client is gone: a fault that has not happened by now cannot happen any more."""
        strike, self._strike = self._strike, None
        waiting, self._waiting = self._waiting, None
        if strike is not None and not strike.holding:
            strike.injection.give_back()
        if waiting is not None:
            waiting[0].give_back()

    def _client_mask(self) -> int:
        if self._frozen:
            return 0
        listening = not self.client.finishing and self._waiting is None and len(self.server.out) < HIGH_WATER
        return (READ if listening else 0) | (WRITE if self.client.out else 0)

    def _server_mask(self) -> int:
        if self._frozen:
            return 0
        held = len(self._strike.reply) if self._strike is not None and self._strike.holding else 0
        listening = len(self.client.out) + held < HIGH_WATER or self.client.closed
        return (READ if listening else 0) | (WRITE if self.server.out else 0)

    def _forward(self, data: bytes, commands: int) -> None:
        self._owed += commands
        self.server.send(data)

    def _request(self, data: bytes) -> None:
        commands: Commands = self._requests.feed(data)
        strike = self._strike
        if strike is not None and strike.injection.fault is not Fault.SLOW:
            return  # the client is about to be cut off: what it sends meanwhile is lost with the connection
        injection = self._book.choose(commands) if commands and strike is None else None
        if injection is None:
            self._forward(data, len(commands))
        elif self._owed:
            self._waiting = injection, commands, data
        else:
            self._begin(injection, commands, data)

    def _begin(self, injection: Injection, commands: Commands, data: bytes) -> None:
        strike = Strike(injection, names_of(commands), len(commands))
        match injection.fault:
            case Fault.REQUEST_LOST:
                self._happened(strike)
                self.client.close()
            case Fault.CUT:
                self.server.send(_half(data))
                self.client.close()
                # The server closes its side when it has executed what is whole of the half.
                self._at_end = partial(self._happened, strike)
            case Fault.DELIVERED_LATE:
                self._happened(strike)
                self.client.close()
                self.late = Late(data, len(commands))
                if injection.delay is not None:
                    self._timers.after(injection.delay, self.release)
            case Fault.REPLY_LOST | Fault.CUT_MID_REPLY | Fault.SLOW:
                self._strike = strike
                self._forward(data, len(commands))

    def _reply(self, data: bytes) -> None:
        replies = len(self._replies.feed(data))
        self._owed -= replies
        strike = self._strike
        if strike is not None:
            strike.replies -= replies
            self._struck_reply(strike, data)
        elif not self.client.closed:
            self.client.send(data)
        if self._waiting is not None and not self._owed:
            waiting, self._waiting = self._waiting, None
            self._begin(*waiting)

    def _struck_reply(self, strike: Strike, data: bytes) -> None:
        fault = strike.injection.fault
        if fault is not Fault.REPLY_LOST:
            strike.reply += data
        if fault is Fault.SLOW:
            if not strike.holding:
                strike.holding = True
                self._timers.after(strike.injection.delay or 0.0, self._let_go)
                self._happened(strike)
        elif strike.replies <= 0:
            self._strike = None
            self._happened(strike)
            self.client.send(_half(bytes(strike.reply)))
            self.client.finishing = True

    def _let_go(self) -> None:
        strike, self._strike = self._strike, None
        if strike is not None:
            self.client.send(strike.reply)
            self.review()

    def _happened(self, strike: Strike) -> None:
        # Before the client is cut off: a test that has seen the cut will find the fault counted.
        self._book.record(strike.injection, strike.names)


def _half(data: bytes) -> bytes:
    """The first half, ending within a frame: each frame ends with CR LF, so nothing may end there."""
    middle = len(data) // 2
    return data[: middle - 1] if data[:middle].endswith(b"\r\n") else data[:middle]

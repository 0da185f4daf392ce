"""The last thing that a stopping worker does at the server (protocol, section 5)."""

from __future__ import annotations

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, ServerError
from streamfleet_core.keys import GROUP
from streamfleet_core.procedure import Steps, transaction
from streamfleet_core.replies import parse_pending
from streamfleet_core.settlement import release
from streamfleet_core.state import RELEASED_IDLE_MS, QueueState

PAGE = 1000


def farewell(queues: list[QueueState], consumer: bytes) -> Steps:
    """Give back what is left in our pending entries list, and remove a consumer that has nothing there.

    A read that was cut at the end may have put entries into the list that nobody here knows of. Entries keep
    their consumer; it is then swept a day later. Such a read may even be answered right before the consumer goes;
    entries that went with it are claimed anew.
    """
    for queue in queues:
        stream, start, left = queue.keys.stream, b"-", False
        while start:
            query: Command = ("XPENDING", stream, GROUP, start, "+", PAGE, consumer)
            reply = (yield [("UNWATCH",), safeguards.watch_fences([queue.keys.fence]), query]).replies[-1]
            if isinstance(reply, ServerError):
                left = True
                break
            rows = parse_pending(reply)
            left = left or bool(rows)
            ids = [row.entry_id for row in rows if row.idle_ms < RELEASED_IDLE_MS]
            if ids and (yield transaction([release(stream, consumer, ids)])).replies[-1] is None:
                continue  # others have taken entries over meanwhile, perhaps some of these: they keep them
            start = b"(" + rows[-1].entry_id if len(rows) == PAGE else b""
        if not left:
            last_look: Command = ("XPENDING", stream, GROUP, "-", "+", PAGE, consumer)
            end = transaction([last_look, ("XGROUP", "DELCONSUMER", stream, GROUP, consumer)])
            watch = safeguards.watch_fences([queue.keys.fence])
            result = (yield [("UNWATCH",), *end, watch]).replies[-2]
            rows = parse_pending(result[0]) if isinstance(result, list) and isinstance(result[0], list) else []
            if rows:
                yield transaction([release(stream, consumer, [row.entry_id for row in rows], "FORCE")])

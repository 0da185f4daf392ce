"""Events of the machines as log records, on the logger ``streamfleet``.

A record's ``streamfleet`` attribute is the `streamfleet_core.events.Event` itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from streamfleet_core.events import Event, EventKind

logger = logging.getLogger("streamfleet")

LEVELS = {
    EventKind.DISCONNECTED: logging.WARNING,
    EventKind.RECONNECTED: logging.WARNING,
    EventKind.REFUSED: logging.ERROR,
    EventKind.BACKING_OFF: logging.WARNING,
    EventKind.OWNERSHIP_LOST: logging.WARNING,
    EventKind.DEAD_LETTERED: logging.ERROR,
    EventKind.TIMED_OUT: logging.WARNING,
    EventKind.LATE_RETURN: logging.WARNING,
    EventKind.RESCUED: logging.ERROR,
    EventKind.MARKER_REGRESSED: logging.ERROR,
    EventKind.COLLECTED: logging.ERROR,
    EventKind.EXPIRED_LOCALLY: logging.WARNING,
    EventKind.NOT_ACCEPTED: logging.ERROR,
    EventKind.SCHEDULE_BROKEN: logging.ERROR,
    EventKind.ORPHANS_RESTORED: logging.WARNING,
    EventKind.UNSAFE_SERVER: logging.WARNING,
    EventKind.HANDLERS_HANG: logging.ERROR,
    EventKind.RESULT_DROPPED: logging.WARNING,
}


def report(who: str, events: Iterable[Event]) -> None:
    """Log events; those not listed above are informational."""
    for event in events:
        log(LEVELS.get(event.kind, logging.INFO), "%s: %s", who, event.text, extra={"streamfleet": event})


def log(level: int, text: str, *arguments: object, extra: Mapping[str, object] | None = None) -> None:
    """Log one record.

    A log handler or filter that raises costs its record, never its caller: it is shown as `logging` shows what its
    own handlers raise.
    """
    try:
        if logger.isEnabledFor(level):
            logger.log(level, text, *arguments, extra=extra)
    except Exception:
        logging.Handler().handleError(logging.makeLogRecord({"msg": text, "args": arguments}))

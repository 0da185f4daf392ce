"""Log records as lines on stderr: one per record, no traceback unless asked for."""

from __future__ import annotations

import logging
import sys


class LineFormatter(logging.Formatter):
    """``12:00:01 warning worker-1: no connection to the server``."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(level)s %(message)s", datefmt="%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        record.level = record.levelname.lower()
        return super().format(record)

    def formatException(self, ei: object) -> str:
        """The traceback, or its last line."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return text if self._tracebacks else text.rsplit("\n", 1)[-1]


def log_to_stderr(*, verbose: bool) -> None:
    """Show streamfleet's warnings, or with ``verbose`` all that it says; leave a user's own set-up alone."""
    logger = logging.getLogger("streamfleet")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if not logging.getLogger().handlers and not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LineFormatter(tracebacks=verbose))
        logger.addHandler(handler)
        logger.propagate = False

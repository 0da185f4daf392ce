"""Which queues a server has, found by the names of their keys."""

from __future__ import annotations

from streamfleet.cli.session import Session
from streamfleet_core.errors import InvalidQueueName
from streamfleet_core.keys import check_queue_name, queue_keys

PAGE = 1000
"""Keys looked at in one call, so that a large server is not held up."""

_STEM = "streamfleet:"
_SUFFIXES = (":dead", ":schedule")


def queues_on(session: Session) -> list[str]:
    """Names of all queues that have a task, a worker, a dead letter or a scheduled task. Raises a ServerRefused.

    It looks at the name of each key of the database, page by page.
    """
    names: set[str] = set()
    cursor: bytes = b"0"
    while True:
        reply = session.ask("SCAN", cursor, "MATCH", f"*{_STEM}*", "COUNT", PAGE)
        assert isinstance(reply, list), "SCAN answers a cursor and a page"
        match reply:
            case [bytes() as cursor, list() as page]:
                names.update(name for key in page if isinstance(key, bytes) and (name := _queue_of(key)))
        if cursor == b"0":
            return sorted(names)


def _queue_of(key: bytes) -> str:
    """The queue that a stream, dead letters or schedule belong to; empty for any other key."""
    text = key.decode(errors="surrogateescape")
    if text.startswith(_STEM):
        return _checked(text.removeprefix(_STEM))
    for suffix in _SUFFIXES:
        if text.endswith(suffix):
            # The prefix ends with the stream's name, alone in braces or after a tag and its length.
            _, _, name = text.removesuffix(suffix).partition(_STEM)
            for candidate in (name.removesuffix("}"), name):
                keys = queue_keys(candidate) if _checked(candidate) else None
                if keys is not None and key in (keys.dead, keys.schedule):
                    return candidate
    return ""


def _checked(name: str) -> str:
    try:
        return check_queue_name(name)
    except InvalidQueueName:
        return ""


def chosen_queues(session: Session, named: list[str]) -> list[str]:
    """The queues named, or all. Raises InvalidQueueName."""
    return [check_queue_name(name) for name in named] if named else queues_on(session)

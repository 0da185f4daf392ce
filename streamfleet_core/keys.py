"""Names of the keys that a queue lives in, and the Cluster slots they hash to.

A MULTI works within one hash slot only, so everything that settles a task must sit in the slot of the queue's
stream. The stream's own name is given by the base format (``streamfleet:<queue>``); all our keys therefore
start with a prefix, here called *T*, that hashes to the same slot:

- a stream key without a closing brace hashes as a whole, so T is the stream key in braces:
  ``{streamfleet:mail}``;
- a stream key with a hash tag of its own, say ``streamfleet:a{eu}b``, has its slot from ``eu``, so T starts
  with ``{eu}``;
- what is left (``a}b``, ``a{}b``) hashes as a whole but cannot be put in braces, so T starts with the lowest
  number in hexadecimal that hashes to the same slot.

In the latter two cases the length and the whole of the stream key follow the tag
(``{eu}18:streamfleet:a{eu}b``). The length makes the prefixes unambiguous: no key of one queue can be spelled
by the name of another.

The heartbeat set ``streamfleet:<queue>:receivers`` is named by the base format and shares the stream's slot
only when the queue's name has a hash tag of its own. It must never be part of a MULTI: one key per command.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from streamfleet_core.errors import InvalidQueueName

GROUP = b"streamfleet-server"
"""Consumer group of a queue's stream."""
RECEIVER_GROUP = b"streamfleet-client"
"""Consumer group of a client's receiver stream."""
MAX_QUEUE_NAME = 512
"""Bytes of UTF-8 in a queue's name."""

SLOTS = 16384


def check_queue_name(name: str) -> str:
    """Return ``name`` when it can name a queue.

    Raises InvalidQueueName for anything that is not a text, is empty, longer than MAX_QUEUE_NAME bytes of
    UTF-8, holds NUL or an unpaired surrogate, or collides with another key (``receiver:…``, ``…:receivers``).
    """
    if not isinstance(name, str):
        raise InvalidQueueName(f"a queue's name must be a str, got {type(name).__name__}: {name!r:.80}")
    if not name:
        raise InvalidQueueName("a queue's name must not be empty")
    if name.startswith("receiver:"):
        raise InvalidQueueName(
            f"queue name {name!r:.80} starts with 'receiver:', where clients keep their notices; rename it"
        )
    if name.endswith(":receivers"):
        raise InvalidQueueName(
            f"queue name {name!r:.80} ends with ':receivers', where clients' heartbeats are kept; rename it"
        )
    if "\0" in name:
        raise InvalidQueueName(f"queue name {name!r:.80} holds a NUL character; remove it")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidQueueName(
            f"queue name {name!r:.80} holds an unpaired surrogate at index {error.start}; it has no UTF-8"
        ) from None
    if size > MAX_QUEUE_NAME:
        raise InvalidQueueName(
            f"queue name {name[:40]!r}… has {size} bytes of UTF-8; at most {MAX_QUEUE_NAME} are allowed"
        )
    return name


def _hash_tag(key: bytes) -> bytes | None:
    """What stands between the first ``{`` and the first ``}`` after it, or None when there is nothing."""
    opening = key.find(b"{")
    if opening < 0:
        return None
    closing = key.find(b"}", opening + 1)
    return key[opening + 1 : closing] if closing > opening + 1 else None


def key_slot(key: bytes) -> int:
    """Return the Cluster slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it, modulo 16384."""
    tag = _hash_tag(key)
    return crc_hqx(key if tag is None else tag, 0) % SLOTS


def _tag_for_slot(slot: int) -> bytes:
    # About 16,000 tries of 0.2 µs, once per oddly named queue. The lowest number wins, so that all agree.
    return next(tag for number in count() if crc_hqx(tag := b"%x" % number, 0) % SLOTS == slot)


def _colocated_prefix(stream: bytes) -> bytes:
    tag = _hash_tag(stream)
    if tag is None:
        if b"}" not in stream:
            return b"{%b}" % stream
        tag = _tag_for_slot(key_slot(stream))
    return b"{%b}%d:%b" % (tag, len(stream), stream)


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue. Everything but ``receivers`` is in the slot of ``stream``."""

    queue: str
    stream: bytes
    """The tasks, with consumer group GROUP."""
    receivers: bytes
    """Sorted set of clients' heartbeats; may sit in another slot."""
    prefix: bytes
    """What all keys below, and the ids of our clients, start with."""
    fence: bytes
    """String: a random token that changes with every reclaim."""
    dead: bytes
    """Stream of dead letters."""
    schedule: bytes
    """Sorted set: scheduled task ids by due time (Unix ms, server's clock)."""
    scheduled: bytes
    """Hash: fields of the scheduled tasks by id."""
    moves: bytes
    """String: a random token that changes with every change of the schedule."""

    def producer(self, client_id: str) -> bytes:
        """Return the key of a client's marker (hash: epoch, last applied batch)."""
        return b"%b:producer:%b" % (self.prefix, client_id.encode(errors="surrogateescape"))

    def client_id(self, unique: str) -> str:
        """Return a client id whose receiver stream is in this queue's slot; ``unique`` is best a UUID."""
        return self.prefix.decode() + unique


@lru_cache(maxsize=4096)
def queue_keys(queue: str) -> QueueKeys:
    """Return the keys of a queue. Raises InvalidQueueName as `check_queue_name` does."""
    stream = b"streamfleet:" + check_queue_name(queue).encode()
    prefix = _colocated_prefix(stream)
    return QueueKeys(
        queue=queue,
        stream=stream,
        receivers=stream + b":receivers",
        prefix=prefix,
        fence=prefix + b":fence",
        dead=prefix + b":dead",
        schedule=prefix + b":schedule",
        scheduled=prefix + b":scheduled",
        moves=prefix + b":moves",
    )


def receiver_key(client_id: str) -> bytes:
    """Return the key of a client's receiver stream, in the slot of whatever tag the id starts with.

    An id that others made need not be UTF-8; its bytes then stand as surrogates in ``client_id``.
    """
    return b"streamfleet:receiver:" + client_id.encode(errors="surrogateescape")

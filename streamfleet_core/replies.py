"""What servers answer: kinds of errors, errors for people, and the shapes of stream replies.

Errors are told apart by the first word of the raw line, and by known texts where that word is only ``ERR``;
never by the exception classes of a client library, which differ between libraries and hide the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from streamfleet_core.connection import Argument, Command, Reply, ServerError
from streamfleet_core.errors import (
    AuthenticationFailed,
    PermissionMissing,
    ServerRefused,
    UnsupportedServer,
    WrongKeyType,
)


class UnexpectedReply(ValueError):
    """A reply does not have the shape that its command gives: a fault of the driver, or of ours."""


class ErrorKind(Enum):
    """What an error reply means for what was asked."""

    TRY_AGAIN = "not applied; it will work soon, or elsewhere"
    BACK_OFF = "not applied; the server needs attention"
    FATAL = "not applied; will not work until somebody changes something"
    NO_GROUP = "the stream or its consumer group is gone"
    GROUP_EXISTS = "the consumer group is there already"
    UNBLOCKED = "a blocked read was ended by the server"
    ABORTED = "a transaction was refused as a whole; its cause is in another reply, or see abort_cause"
    OTHER = "anything else"


_KINDS = {
    **dict.fromkeys(
        ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY"),
        ErrorKind.TRY_AGAIN,
    ),
    **dict.fromkeys(("OOM", "MISCONF", "NOREPLICAS"), ErrorKind.BACK_OFF),
    **dict.fromkeys(("NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "CROSSSLOT", "DENIED"), ErrorKind.FATAL),
    "NOGROUP": ErrorKind.NO_GROUP,
    "BUSYGROUP": ErrorKind.GROUP_EXISTS,
    "UNBLOCKED": ErrorKind.UNBLOCKED,
    "EXECABORT": ErrorKind.ABORTED,
}

# Texts of ``ERR`` lines, in lower case.
_KNOWN_TEXTS = (
    ("max number of clients", ErrorKind.TRY_AGAIN),
    ("unknown command", ErrorKind.FATAL),
    ("unknown subcommand", ErrorKind.FATAL),
    ("auth <password> called without any password", ErrorKind.FATAL),
    ("no such key", ErrorKind.NO_GROUP),
    ("requires the key to exist", ErrorKind.NO_GROUP),
)


def classify(error: ServerError) -> ErrorKind:
    """Return what an error reply means."""
    code = error.code
    kind = _KINDS.get(code)
    if kind is not None:
        return kind
    if code == "ERR":
        text = error.message.lower()
        for known, kind in _KNOWN_TEXTS:
            if known in text:
                return kind
    return ErrorKind.OTHER


_ABORT_CAUSE = "because of: "


def abort_cause(error: ServerError) -> ServerError | None:
    """Return the error that an EXECABORT line quotes, or None when it quotes none.

    A server that refuses at EXEC what it accepted for the queue (a replica gone, a full disk) says so only
    there.
    """
    _, found, cause = error.message.partition(_ABORT_CAUSE)
    return ServerError(cause) if found and cause else None


_DENIED_COMMAND = re.compile(r"to run the '([^']+)' command", re.IGNORECASE)
_UNKNOWN_COMMAND = re.compile(r"unknown (sub)?command.*?['`]([^'`]+)['`]", re.IGNORECASE)
_SERVER_USER = re.compile(r"NOPERM User (.+?) has no permissions", re.IGNORECASE)
# Every key of ours matches it, those that start with a hash tag, too.
_KEY_PATTERN = "~*streamfleet:*"

_KEY_TYPES = {"X": "stream", "Z": "zset", "H": "hash"}
_KEYLESS = frozenset(
    {"ACL", "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DISCARD", "EXEC", "HELLO", "INFO", "MULTI"}
    | {"PING", "SELECT", "TIME", "UNWATCH"}
)


def refusal(error: ServerError, command: Command | None, user: str) -> ServerRefused:
    """Return the exception for an error that will not go away by itself, with what to do about it.

    ``command`` is the one that was refused, when known; inside an EXEC the queued one. Of its arguments only
    the key gets into the message.
    """
    error = abort_cause(error) or error
    # An old server quotes the arguments of what it does not know, also the password of HELLO.
    said = f"The server said: {error.message.partition(', with args beginning')[0]}"
    code = error.code
    if code in ("NOAUTH", "WRONGPASS") or "AUTH <password> called without any password" in error.message:
        return AuthenticationFailed(_authentication(code, user, said))
    if code == "NOPERM":
        return PermissionMissing(_permission(error, command, user, said))
    if code == "WRONGTYPE":
        return WrongKeyType(_wrong_type(command, said))
    if classify(error) is ErrorKind.FATAL and code == "ERR":
        name = _unknown_command(error, command)
        return UnsupportedServer(
            f"the server does not know the command {name}. Redis 6.2 or newer, or Valkey, is needed; "
            f"look also for rename-command in its configuration, or what a hosted service disables. {said}"
        )
    what = f"the server refuses {_subject(command)}"
    if code == "CROSSSLOT":
        return ServerRefused(f"{what}: its keys are in different slots of the Cluster. {said}")
    if code == "DENIED":
        return ServerRefused(
            f"{what}: it is in protected mode. Set a password or a bind address on the server. {said}"
        )
    return ServerRefused(f"{what}. {said}")


def _authentication(code: str, user: str, said: str) -> str:
    if code == "NOAUTH":
        return f"the server wants a password; put it into the URL (redis://user:password@host). {said}"
    if code == "WRONGPASS":
        return f"the server does not accept user {user!r} with this password; check both in the URL. {said}"
    return f"the server has no password set for user {user!r}; remove the password from the URL. {said}"


def _permission(error: ServerError, command: Command | None, user: str, said: str) -> str:
    named = _SERVER_USER.search(error.message)
    who = named.group(1) if named else user
    denied = _DENIED_COMMAND.search(error.message)
    if denied is None and "key" in error.message.lower():
        key = command_key(command)
        where = f"the key {_shown(key)}" if key is not None else "one of the keys"
        return (
            f"user {who!r} may not access {where} that {_subject(command)} uses; "
            f"an administrator can allow it by ACL SETUSER {who} '{_KEY_PATTERN}'. {said}"
        )
    name = denied.group(1).upper().replace("|", " ") if denied else _subject(command)
    return (
        f"user {who!r} may not run {name}; "
        f"an administrator can allow it by ACL SETUSER {who} +{name.lower().replace(' ', '|')}. {said}"
    )


def _wrong_type(command: Command | None, said: str) -> str:
    key = command_key(command)
    where = f"the key {_shown(key)}" if key is not None else "a key of the queue"
    wanted = f"not a {_KEY_TYPES.get(_subject(command)[:1], 'string')}" if command else "of another type"
    return (
        f"{where} is {wanted}, as {_subject(command)} needs it: something else uses the name. "
        f"Look at it with TYPE, then rename or delete it, or choose another queue name. {said}"
    )


def _unknown_command(error: ServerError, command: Command | None) -> str:
    quoted = _UNKNOWN_COMMAND.search(error.message)
    if quoted is None:
        return _subject(command)
    name = quoted.group(2).upper()
    return f"{_subject(command)} {name}" if quoted.group(1) and command else name


def _subject(command: Command | None) -> str:
    return _word(command[0]) if command else "a command"


def _word(argument: Argument) -> str:
    return (argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)).upper()


def _shown(key: bytes | str) -> str:
    return repr(key.decode(errors="backslashreplace") if isinstance(key, bytes) else key)


def command_key(command: Command | None) -> bytes | str | None:
    """Return the first key of a command, or None when it has none or the command is not known."""
    if not command:
        return None
    name = _subject(command)
    at = 1
    if name in ("XGROUP", "XINFO", "MEMORY", "OBJECT"):
        at = 2
    elif name in ("XREAD", "XREADGROUP"):
        first = 4 if name == "XREADGROUP" else 1  # a consumer may be called "streams"
        at = next((i + 1 for i in range(first, len(command)) if _word(command[i]) == "STREAMS"), 0)
    key = command[at] if 0 < at < len(command) and name not in _KEYLESS else None
    return key if isinstance(key, (bytes, str)) else None


Entry = tuple[bytes, list[bytes] | None]


def _unexpected(command: str, reply: object) -> NoReturn:
    raise UnexpectedReply(f"unexpected reply to {command}: {reply!r:.200}")


def parse_entries(reply: Reply) -> list[Entry]:
    """Return the entries of an XRANGE or XCLAIM reply; the fields are None where the entry has been deleted.

    Redis 6.2 answers nil in the place of a claimed entry that has been deleted; there is no id, so it is left
    out. Raises UnexpectedReply.
    """
    if not isinstance(reply, list):
        _unexpected("XRANGE or XCLAIM", reply)
    entries: list[Entry] = []
    for element in reply:
        if element is None:
            continue
        # Once per task: twice as fast as a match statement.
        if type(element) is not list or len(element) != 2:
            _unexpected("XRANGE or XCLAIM", element)
        entry_id, fields = element
        if type(entry_id) is not bytes or (fields is not None and type(fields) is not list):
            _unexpected("XRANGE or XCLAIM", element)
        entries.append((entry_id, fields))  # type: ignore[arg-type]  # of what the fields are, the server vouches
    return entries


def parse_read(reply: Reply) -> dict[bytes, list[Entry]]:
    """Return the entries of an XREADGROUP or XREAD reply by stream; empty for nil. Raises UnexpectedReply."""
    if reply is None:
        return {}
    if not isinstance(reply, list):
        _unexpected("XREADGROUP", reply)
    streams: dict[bytes, list[Entry]] = {}
    for element in reply:
        match element:
            case [bytes() as stream, list() as entries]:
                streams[stream] = parse_entries(entries)
            case _:
                _unexpected("XREADGROUP", element)
    return streams


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """One line of an extended XPENDING."""

    entry_id: bytes
    consumer: bytes
    idle_ms: int
    deliveries: int
    """As the server counts them."""


def parse_pending(reply: Reply) -> list[PendingEntry]:
    """Return the lines of an extended XPENDING. Raises UnexpectedReply."""
    if not isinstance(reply, list):
        _unexpected("XPENDING", reply)
    pending: list[PendingEntry] = []
    for element in reply:
        match element:
            case [bytes() as entry_id, bytes() as consumer, int() as idle, int() as deliveries]:
                pending.append(PendingEntry(entry_id, consumer, idle, deliveries))
            case _:
                _unexpected("XPENDING", element)
    return pending


def parse_flat(reply: Reply) -> dict[bytes, Reply]:
    """Return a reply of alternating names and values (XINFO, HGETALL) as a dict. Raises UnexpectedReply."""
    if not isinstance(reply, list) or len(reply) % 2:
        _unexpected("XINFO", reply)
    names = reply[::2]
    flat: dict[bytes, Reply] = {}
    for name, value in zip(names, reply[1::2], strict=True):
        if not isinstance(name, bytes):
            _unexpected("XINFO", reply)
        flat[name] = value
    return flat


def parse_time(reply: Reply) -> int:
    """Return the Unix time in ms from a TIME reply. Raises UnexpectedReply."""
    match reply:
        case [bytes() as seconds, bytes() as micros] if seconds.isdigit() and micros.isdigit():
            return int(seconds) * 1000 + int(micros) // 1000
        case _:
            _unexpected("TIME", reply)

"""Commands about the session and the server rather than about keys."""

from __future__ import annotations

from streamfleet.memory.arguments import SYNTAX_ERROR, integer, refuse, text
from streamfleet.memory.session import Session, SessionHandler
from streamfleet_core.connection import Reply

SERVER = b"memory"
VERSION = b"7.2.0"
"""The version of Redis whose behaviour the model has."""


def ping(session: Session, args: list[bytes]) -> Reply:
    if len(args) > 2:
        refuse("ERR wrong number of arguments for 'ping' command")
    return args[1] if len(args) == 2 else b"PONG"


def hello(session: Session, args: list[bytes]) -> Reply:
    if len(args) > 1:
        version = integer(args[1], "ERR Protocol version is not an integer or out of range")
        if version != 2:
            refuse("NOPROTO unsupported protocol version")
        if len(args) > 2:
            refuse(f"ERR Syntax error in HELLO option '{text(args[2])}'")
    return [
        *(b"server", SERVER),
        *(b"version", VERSION),
        *(b"proto", 2),
        *(b"id", session.client_id),
        *(b"mode", b"standalone"),
        *(b"role", b"master"),
        *(b"modules", []),
    ]


def client(session: Session, args: list[bytes]) -> Reply:
    match [args[1].upper(), *args[2:]]:
        case [b"ID"]:
            return session.client_id
        case [b"SETNAME", name]:
            if any(byte < 0x21 or byte > 0x7E for byte in name):
                refuse("ERR Client names cannot contain spaces, newlines or special characters.")
            session.name = name
            return b"OK"
        case [b"SETINFO", attribute, _]:
            if attribute.upper() not in (b"LIB-NAME", b"LIB-VER"):
                refuse(f"ERR Unrecognized option '{text(attribute)}'")
            return b"OK"
        case [b"UNBLOCK", client_id, *reason]:
            return _unblock(session, client_id, reason)
    refuse(SYNTAX_ERROR)


def _unblock(session: Session, client_id: bytes, reason: list[bytes]) -> Reply:
    reasons = [part.upper() for part in reason]
    if reasons not in ([], [b"TIMEOUT"], [b"ERROR"]):
        refuse("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    return int(session.server.unblock(integer(client_id), with_error=reasons == [b"ERROR"]))


def info(session: Session, args: list[bytes]) -> Reply:
    lines = (
        b"# Server",
        b"redis_version:" + VERSION,
        b"server_name:" + SERVER,
        b"redis_mode:standalone",
        b"# Clients",
        b"connected_clients:%d" % len(session.server.sessions),
        b"# Memory",
        b"maxmemory:0",
        b"maxmemory_policy:noeviction",
        b"# Persistence",
        b"loading:0",
        b"aof_enabled:0",
        b"# Replication",
        b"role:master",
    )
    return b"\r\n".join(lines) + b"\r\n"


def command(session: Session, args: list[bytes]) -> Reply:
    found: list[Reply] = []
    for name in args[2:]:
        spec = session.server.commands.get(name.upper())
        found.append(None if spec is None else [spec.name.lower().encode(), spec.arity, [], 0, 0, 0, []])
    return found


def acl(session: Session, args: list[bytes]) -> Reply:
    return b"default"


def unwatch(session: Session, args: list[bytes]) -> Reply:
    session.unwatch()
    return b"OK"


COMMANDS: dict[str, tuple[int, SessionHandler]] = {
    "PING": (-1, ping),
    "HELLO": (-1, hello),
    "CLIENT": (-2, client),
    "INFO": (-1, info),
    "COMMAND": (-2, command),
    "ACL": (-2, acl),
    "UNWATCH": (1, unwatch),
}

IMMEDIATE_COMMANDS: dict[str, tuple[int, SessionHandler]] = {
    "MULTI": (1, Session.multi),
    "EXEC": (1, Session.exec),
    "DISCARD": (1, Session.discard),
    "WATCH": (-2, Session.watch),
}

SUBCOMMANDS: dict[str, dict[bytes, int]] = {
    "CLIENT": {b"ID": 2, b"SETNAME": 3, b"SETINFO": 4, b"UNBLOCK": -3},
    "COMMAND": {b"INFO": -2},
    "ACL": {b"WHOAMI": 2},
}

"""``streamfleet doctor``."""

import ast
import json
import socket
from pathlib import Path

import pytest

import streamfleet_core
from streamfleet.cli.needs import direct, transactional
from streamfleet.embedded import EmbeddedServer
from streamfleet.memory.model import ModelServer
from streamfleet.redis import RedisDriver
from streamfleet_core.keys import queue_keys


@pytest.fixture
def own_server():
    """One whose settings may be changed."""
    with EmbeddedServer(appendonly=False) as server:
        yield server


def tell(server, *commands):
    connection = RedisDriver(server.url).connect(5)
    try:
        return connection.exchange(commands, 5)
    finally:
        connection.close()


def used_memory(server):
    lines = tell(server, ("INFO", "memory"))[0].decode().splitlines()
    return int(next(line for line in lines if line.startswith("used_memory:")).split(":")[1])


def findings(streamfleet, *arguments):
    ended = streamfleet("doctor", "--json", *arguments)
    rows = json.loads(ended.stdout)
    return ended.returncode, {row["subject"]: (row["level"], row["text"], row["mend"]) for row in rows}


def test_all_is_well(streamfleet):
    ended = streamfleet("doctor", "mail", STREAMFLEET_URL="embedded://")
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["ok"] * 9
    assert "embedded:// (from $STREAMFLEET_URL)" in ended.stdout
    assert "fsync always" in ended.stdout


def test_nothing_is_changed(streamfleet, own_server):
    code, _ = findings(streamfleet, "mail", "--url", own_server.url)
    assert code == 0
    assert tell(own_server, ("DBSIZE",)) == [0]


def test_no_server(streamfleet):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        url = f"redis://:secret@127.0.0.1:{nobody.getsockname()[1]}"
        ended = streamfleet("doctor", "--url", url)
    assert ended.returncode == 3
    assert "fail  server       cannot connect to redis://127.0.0.1" in ended.stdout
    assert "→ start it, or name another" in ended.stdout
    assert "secret" not in ended.stdout + ended.stderr
    assert ended.stderr == ""


def test_wrong_password(streamfleet, own_server):
    tell(own_server, ("CONFIG", "SET", "requirepass", "right"))
    code, found = findings(streamfleet, "--url", own_server.url)
    assert code == 3
    assert found["server"][0] == "fail"
    assert "wants a password" in found["server"][1]


def test_settings_that_lose_tasks_are_warned_of(streamfleet, own_server):
    tell(own_server, ("SET", "filler", b"x" * 20_000_000))
    memory = str(int(used_memory(own_server) / 0.95))
    tell(own_server, ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", memory))
    code, found = findings(streamfleet, "--url", own_server.url)
    assert code == 0
    assert found["eviction"][:2] == ("warn", "maxmemory-policy allkeys-lru")
    assert "CONFIG SET maxmemory-policy noeviction" in found["eviction"][2]
    assert found["memory"][0] == "warn"
    assert found["durability"][:2] == ("warn", "no append-only file")
    tell(own_server, ("CONFIG", "SET", "appendonly", "yes", "appendfsync", "no", "maxmemory", "0"))
    assert findings(streamfleet, "--url", own_server.url)[1]["durability"][:2] == (
        "warn",
        "append-only file, fsync no",
    )


def test_missing_rights_name_command_and_user(streamfleet, own_server):
    rights = ("on", ">pw", "~*streamfleet:*", "+@all", "-xdel", "-multi")
    tell(own_server, ("ACL", "SETUSER", "clerk", *rights))
    url = own_server.url.replace("://", "://clerk:pw@")
    ended = streamfleet("doctor", "--url", url)
    assert ended.returncode == 1
    assert "user 'clerk' may not run XDEL" not in ended.stdout
    assert "user 'clerk' may not run MULTI" in ended.stdout
    assert tell(own_server, ("DBSIZE",)) == [0], "without MULTI what is asked would be done"
    tell(own_server, ("ACL", "SETUSER", "clerk", "+multi"))
    ended = streamfleet("doctor", "--url", url)
    assert ended.returncode == 1
    assert "user 'clerk' may not run XDEL" in ended.stdout
    assert "ACL SETUSER clerk +xdel" in ended.stdout
    tell(own_server, ("ACL", "SETUSER", "clerk", "+xdel"))
    assert streamfleet("doctor", "--url", url).returncode == 0
    tell(own_server, ("ACL", "SETUSER", "clerk", "resetkeys", "~streamfleet:*"))
    ended = streamfleet("doctor", "mail", "--url", url)
    assert ended.returncode == 1
    assert "ACL SETUSER clerk '~*streamfleet:*'" in ended.stdout


def test_wrong_typed_keys(streamfleet, own_server):
    tell(own_server, ("SET", queue_keys("mail").dead, "text"))
    code, found = findings(streamfleet, "mail", "news", "--url", own_server.url)
    assert code == 1
    level, text, mend = found["queue mail"]
    assert level == "fail"
    assert text == "dead letters: key '{streamfleet:mail}:dead' holds a string, but must be a stream"
    assert "RENAME {streamfleet:mail}:dead" in mend
    assert found["queue news"][0] == "ok"


def test_a_replica_is_no_place_for_a_queue(streamfleet, own_server):
    tell(own_server, ("REPLICAOF", "127.0.0.1", "1"), ("CONFIG", "SET", "replica-serve-stale-data", "yes"))
    code, found = findings(streamfleet, "--url", own_server.url)
    assert code == 1
    assert found["server"][0] == "fail"
    assert "replica" in found["server"][2]


def test_memory_is_told_from_a_server(streamfleet):
    code, found = findings(streamfleet, "--url", "memory://")
    assert code == 0
    assert found["durability"][:2] == ("warn", "nothing is kept when the process ends")


@pytest.mark.parametrize("arguments", [["--url", "reddis://x"], ["receiver:x", "--url", "memory://"]])
def test_wrong_usage(streamfleet, arguments):
    ended = streamfleet("doctor", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("streamfleet: ")


def sent_by_the_core():
    """Names of all commands that the core's source spells, as the heads of tuples."""
    known = {name.decode() for name in ModelServer(lambda: 0).commands}
    names = set()
    for path in Path(streamfleet_core.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            head = node.elts[0] if isinstance(node, ast.Tuple) and node.elts else None
            if isinstance(head, ast.Constant) and head.value in known:
                names.add(head.value)
    return names


def test_asks_for_every_command_that_the_core_sends():
    keys = queue_keys("mail")
    asked = {command[0] for command in (*transactional(keys), *direct(keys))}
    harmless = {"ACL", "AUTH", "CLIENT", "COMMAND", "CONFIG", "HELLO", "PING", "SELECT"}
    assert {"XADD", "WATCH", "ZSCORE"} <= sent_by_the_core()
    assert sent_by_the_core() - harmless <= asked

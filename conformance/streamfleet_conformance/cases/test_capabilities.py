"""A declared capability that is missing fails, and so does an undeclared one that works."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from os import environ, pathsep
from time import monotonic
from uuid import uuid4

import pytest

from streamfleet_conformance.actors import portable
from streamfleet_conformance.marks import owned
from streamfleet_conformance.scene import Scene
from streamfleet_conformance.waiting import eventually
from streamfleet_core.connection import Capability, Command, Connection, Reply, ServerError
from streamfleet_core.errors import ConnectionFailure

SECONDS = 5.0
ENTRY = [[b"1-1", [b"f", b"v"]]]


def answered(scene: Scene, *commands: Command) -> bool:
    """None of these commands is answered by an error."""
    return not any(isinstance(reply, ServerError) for reply in scene.do_all(*commands))


def reading(connection: Connection, command: Command) -> tuple[threading.Thread, list[Reply]]:
    """Run a blocking read in a thread. A failure leaves the list empty."""
    replies: list[Reply] = []

    def run() -> None:
        try:
            replies.extend(connection.exchange([command], 8.0))
        except ConnectionFailure:
            replies.clear()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, replies


def blocking_reads(scene: Scene) -> bool:
    key = f"{scene.queue}-blocking"
    scene.do("XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
    for command in (
        ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", 6_000, "STREAMS", key, ">"),
        ("XREAD", "COUNT", 1, "BLOCK", 6_000, "STREAMS", key, "0"),
    ):
        scene.do("XTRIM", key, "MAXLEN", 0)
        begun = monotonic()
        short = tuple(80 if word == 6_000 else word for word in command)
        if scene.connect().exchange([short], SECONDS) != [None] or monotonic() - begun < 0.075:
            return False
        thread, replies = reading(scene.connect(), command)
        scene.do("XADD", key, "*", "f", "v")
        thread.join(3.0)
        if not isinstance(replies[:1] and replies[0], list):
            return False
    return True


def watch_sees_xdel(scene: Scene) -> bool:
    stream, mortal = f"{scene.queue}-watched", f"{scene.queue}-mortal"
    connection = scene.connect()
    scene.do_all(("XADD", stream, "1-1", "f", "v"))
    connection.exchange([("WATCH", stream)], SECONDS)
    scene.do("XDEL", stream, "1-1")
    deleted = connection.exchange([("MULTI",), ("PING",), ("EXEC",)], SECONDS)[-1] is None
    scene.do("SET", mortal, "x", "PX", 30)
    connection.exchange([("WATCH", mortal)], SECONDS)
    eventually(lambda: scene.do("GET", mortal) is None, "the key has expired")
    expired = connection.exchange([("MULTI",), ("PING",), ("EXEC",)], SECONDS)[-1] is None
    return deleted and expired


def client_unblock(scene: Scene) -> bool:
    key = f"{scene.queue}-unblocked"
    connection = scene.connect()
    reply = connection.exchange([("CLIENT", "ID")], SECONDS)[0]
    if not isinstance(reply, int):
        return False
    thread, replies = reading(connection, ("XREAD", "BLOCK", 6_000, "STREAMS", key, "0"))
    deadline = monotonic() + 1.0
    while scene.do("CLIENT", "UNBLOCK", reply) != 1:
        if monotonic() > deadline:
            connection.interrupt()
            return False
    thread.join(3.0)
    return replies == [None] and connection.exchange([("PING",)], SECONDS) == [b"PONG"]


def server_info(scene: Scene) -> bool:
    key = f"{scene.queue}-key"
    scene.do("SET", key, "x")
    return answered(scene, ("INFO",), ("CONFIG", "GET", "maxmemory"), ("MEMORY", "USAGE", key))


def acl(scene: Scene) -> bool:
    user = f"u-{uuid4().hex}"
    if not answered(scene, ("ACL", "SETUSER", user, "on", ">secret", "~*", "+auth")):
        return False
    connection = scene.connect()
    replies = connection.exchange([("AUTH", user, "secret"), ("XDEL", scene.queue, "1-1")], SECONDS)
    scene.do("ACL", "DELUSER", user)
    return isinstance(replies[1], ServerError) and replies[1].code == "NOPERM"


LOOK = """
import json, sys
from streamfleet_conformance.harness import harness_for
from streamfleet_conformance.shells import shell_for
order = json.loads(sys.argv[1])
connection = shell_for(order["shell"]).connect(
    harness_for(order["driver"], order["server"], order["harness"]).driver(order["url"]), 5.0
)
print(connection.exchange([("GET", order["key"])], 5.0))
"""


def out_of_process(scene: Scene) -> bool:
    key = f"{scene.queue}-shared"
    scene.do("SET", key, "seen")
    order = portable(scene.spec, url=scene.backend.url, key=key)
    process = subprocess.run(
        [sys.executable, "-c", LOOK, order],
        capture_output=True,
        text=True,
        timeout=30,
        env=environ | {"PYTHONPATH": pathsep.join(filter(None, sys.path))},
    )
    return "seen" in process.stdout


def cluster_commands(scene: Scene) -> bool:
    return answered(scene, ("CLUSTER", "KEYSLOT", "key"))


def xackdel(scene: Scene) -> bool:
    key = f"{scene.queue}-xackdel"
    scene.do_all(("XGROUP", "CREATE", key, "g", "0", "MKSTREAM"), ("XADD", key, "1-1", "f", "v"))
    return answered(scene, ("XACKDEL", key, "g", "IDS", 1, "1-1"))


def persistence(scene: Scene) -> bool:
    key = f"{scene.queue}-kept"
    scene.do("SET", key, "x")
    scene.backend.kill()
    scene.backend.restart()
    return scene.do("GET", key) == b"x"


PROBES: dict[Capability, Callable[[Scene], bool]] = {
    Capability.BLOCKING_READS: blocking_reads,
    Capability.WATCH_SEES_XDEL: watch_sees_xdel,
    Capability.CLIENT_UNBLOCK: client_unblock,
    Capability.SERVER_INFO: server_info,
    Capability.ACL: acl,
    Capability.OUT_OF_PROCESS: out_of_process,
    Capability.CLUSTER_COMMANDS: cluster_commands,
    Capability.XACKDEL: xackdel,
}


def check(scene: Scene, capability: Capability, probe: Callable[[Scene], bool]) -> None:
    """Raises AssertionError when what is declared and what is do not agree."""
    missing = capability in scene.declared_missing()
    works = probe(scene)
    assert works or missing, (
        f"{capability.name} ({capability.value}) is not declared as missing, but does not work"
    )
    assert not (works and missing), f"{capability.name} ({capability.value}) is declared as missing, but works"


@pytest.mark.parametrize("capability", PROBES, ids=lambda capability: capability.name.lower())
def test_what_is_declared_is_so(scene: Scene, capability: Capability) -> None:
    check(scene, capability, PROBES[capability])


@owned(durable=True)
def test_persistence_is_as_declared(scene: Scene) -> None:
    check(scene, Capability.PERSISTENCE, persistence)


def test_every_capability_has_a_probe() -> None:
    assert {*PROBES, Capability.PERSISTENCE} == set(Capability)

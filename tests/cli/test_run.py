"""``streamfleet run``."""

import signal
import socket
from pathlib import Path

import pytest

from streamfleet.redis import RedisDriver
from streamfleet.sync import Client
from streamfleet_core.keys import GROUP, queue_keys

APP = """
import os, pathlib, threading
from streamfleet import driver_from_url
from streamfleet.sync import Worker

QUEUE = os.environ.get("QUEUE", "run")
worker = Worker(driver_from_url(os.environ.get("STREAMFLEET_URL", "redis://127.0.0.1:1")), name="from-the-program")
number = 3

@worker.handler(QUEUE)
def handle(task):
    if task.text == "wait":
        pathlib.Path("begun").touch()
        while not pathlib.Path("go").exists():
            threading.Event().wait(0.005)  # between two looks at the condition
    pathlib.Path(task.text + ".done").touch()

def make():
    return worker

def fails():
    raise LookupError("no such thing")

def gives_three():
    return 3
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def ask(server, *command):
    connection = RedisDriver(server.url).connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


def pending(server, queue):
    return ask(server, "XPENDING", queue_keys(queue).stream, GROUP)[0]


def connections(server, name):
    """How many there are of this name."""
    return ask(server, "CLIENT", "LIST").count(b" name=%b " % name.encode())


@pytest.mark.parametrize("target", ["app:worker", "app:make"])
def test_works_until_told_to_stop(app, server, start, eventually, target):
    queue = f"works-{target[4:]}"
    process = start("run", target, "--name", "node-7", "-c", 2, STREAMFLEET_URL=server.url, QUEUE=queue)
    with Client(RedisDriver(server.url)) as client:
        client.enqueue(queue, "hello")
        eventually((app / "hello.done").exists)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert out == ""
    assert "worker node-7 runs" in errors
    assert "worker node-7 stopped in good order: 1 tasks completed" in errors


def test_url_of_the_command_line_comes_first(app, server, start, eventually):
    process = start("run", "app:worker", "--url", server.url, STREAMFLEET_URL="redis://127.0.0.1:1", QUEUE="first")
    with Client(RedisDriver(server.url)) as client:
        client.enqueue("first", "hello")
        eventually((app / "hello.done").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_url_of_the_command_line_replaces_a_driver_that_the_program_has_chosen(app, server, start, eventually):
    text = APP.replace('os.environ.get("STREAMFLEET_URL", "redis://127.0.0.1:1")', '"redis://127.0.0.1:1"')
    (app / "app.py").write_text(text)
    start("run", "app:worker", "--url", server.url, QUEUE="replaced")
    with Client(RedisDriver(server.url)) as client:
        client.enqueue("replaced", "hello")
        eventually((app / "hello.done").exists)


def test_finishes_what_runs_and_takes_an_echo_of_the_signal_for_what_it_is(app, server, start, eventually):
    process = start("run", "app:worker", "-c", 1, STREAMFLEET_URL=f"{server.url}?client_name=drain", QUEUE="drain")
    with Client(RedisDriver(server.url)) as client:
        client.enqueue("drain", "wait")
        eventually((app / "begun").exists)
        client.enqueue("drain", "left")
        client.flush(10)
    working = connections(server, "drain")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: finishing what runs" in next(line for line in process.stderr if "SIG" in line)
    eventually(lambda: connections(server, "drain") < working)  # it reads no more
    assert process.poll() is None
    (app / "go").touch()
    assert process.wait(30) == 0
    assert (app / "wait.done").exists()
    assert not (app / "left.done").exists()
    assert pending(server, "drain") == 0


ASYNC_APP = """
import pathlib
import SHELL
from streamfleet.memory import MemoryDriver
from streamfleet.SHELL import Worker

worker = Worker(MemoryDriver(), concurrency=1)

@worker.handler("SHELL")
async def handle(task):
    pathlib.Path("begun").touch()
    while task.text == "wait" and not pathlib.Path("go").exists():
        await SHELL.sleep(0.005)  # between two looks at the condition
    pathlib.Path("done").touch()
"""


@pytest.mark.parametrize("shell", ["asyncio", "trio"])
def test_serves_the_async_shells_too(tmp_path, server, start, eventually, shell):
    (tmp_path / "app.py").write_text(ASYNC_APP.replace("SHELL", shell))
    process = start("run", "app:worker", "--name", f"node-{shell}", "--url", server.url)
    with Client(RedisDriver(server.url)) as client:
        client.enqueue(shell, "wait")
        eventually((tmp_path / "begun").exists)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: finishing what runs" in next(line for line in process.stderr if "SIG" in line)
    assert process.poll() is None
    (tmp_path / "go").touch()
    assert process.wait(30) == 0
    assert (tmp_path / "done").exists()
    assert f"worker node-{shell} stopped in good order: 1 tasks completed" in process.stderr.read()
    assert pending(server, shell) == 0


def test_leaves_at_once_when_asked_twice(app, server, start, eventually):
    process = start("run", "app:worker", STREAMFLEET_URL=server.url, QUEUE="hurry")
    with Client(RedisDriver(server.url)) as client:
        client.enqueue("hurry", "wait")
        eventually((app / "begun").exists)

    def asked_again():
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    eventually(asked_again)
    assert process.returncode == 1
    assert pending(server, "hurry") == 1, "others take over what was left behind"


def test_starts_without_a_server(app, start):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        process = start("run", "app:worker", "--url", f"redis://127.0.0.1:{nobody.getsockname()[1]}")
        warning = next(line for line in process.stderr if "warning" in line)
        assert "no connection to the server" in warning
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app", "expected module:object, for instance app:worker, got 'app'"),
        ("app:", "expected module:object"),
        ("app:wrker", "app has no 'wrker'; its workers: worker"),
        ("app:number", "app:number is of type int: name a Worker, or a function that returns one"),
        ("app:Worker", "app:Worker is the class Worker"),
        ("app:fails", "app:fails() failed: LookupError: no such thing"),
        ("app:gives_three", "app:gives_three() returned something of type int, not a Worker"),
        ("ap:worker", "no module 'ap' here"),
        ("needs:worker", "importing needs failed: ModuleNotFoundError: No module named 'not_there'"),
        ("wrong:worker", "importing wrong failed: SyntaxError"),
        ("leaves:worker", "importing leaves failed: SystemExit: 7"),
        ("url:worker", "unknown scheme 'reddis'; did you mean redis://?"),
        ("idle:worker", "no handlers"),
    ],
)
def test_wrong_targets_are_told_in_one_line(app, streamfleet, target, message):
    (app / "needs.py").write_text("import not_there\n")
    (app / "wrong.py").write_text("worker = (\n")
    (app / "leaves.py").write_text("raise SystemExit(7)\n")
    (app / "url.py").write_text("from streamfleet import driver_from_url\ndriver_from_url('reddis://x')\n")
    idle = "from streamfleet.sync import Worker\nfrom streamfleet.memory import MemoryDriver\n"
    (app / "idle.py").write_text(f"{idle}worker = Worker(MemoryDriver())\n")
    ended = streamfleet("run", target)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("streamfleet: ")
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_verbose_shows_the_traceback(app, streamfleet):
    ended = streamfleet("run", "-v", "app:fails")
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert 'raise LookupError("no such thing")' in ended.stderr


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "app:worker", "-c", "0"], ["dance"]])
def test_wrong_usage(app, streamfleet, arguments):
    ended = streamfleet(*arguments)
    assert ended.returncode == 2
    assert "usage: streamfleet" in ended.stderr


def test_a_refusing_server_has_an_exit_code_of_its_own(app, server, streamfleet):
    connection = RedisDriver(server.url).connect(5)
    connection.exchange([("SET", queue_keys("refused").stream, "text")], 5)
    connection.close()
    ended = streamfleet("run", "app:worker", "--url", server.url, QUEUE="refused")
    assert ended.returncode == 3
    assert "stream" in ended.stderr.splitlines()[-1], "which of two connections meets it first is open"
    assert "Traceback" not in ended.stderr

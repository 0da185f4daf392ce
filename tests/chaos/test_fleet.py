"""Each end of a process has a reason of the campaign's own, or is a crash."""

import signal
import subprocess
import sys
from random import Random

import pytest
from campaign.fleet import REFUSAL, Denial, Fleet, Member, pairs
from campaign.process import REFUSED, exit_code

from streamfleet.errors import PermissionMissing

XDEL = "user 'default' may not run XDEL"


class ShortLived(Fleet):
    """Members run the code given; none is replaced by a real one."""

    restarts = 0

    def run(self, code, *, role="worker", log="", **state):
        member = Member(role, f"{role}-{len(self.members)}", starts=1, **state)
        member.log, member.errors = (self._directory / f"{member.name}.{end}" for end in ("log", "err"))
        member.log.write_text("ready sync RedisDriver redis\n" + log)
        with member.errors.open("wb") as errors:
            member.process = subprocess.Popen([sys.executable, "-c", code], stderr=errors)
        self.members.append(member)
        return member

    def start(self, member, client_timeout=0.0):
        self.restarts += 1

    def ended(self, code, **state):
        self.run(code, **state).process.wait()
        self.restart_dead()
        return self.crashes


@pytest.fixture
def fleet(tmp_path):
    fleet = ShortLived(tmp_path, Random(1), 1.0)
    yield fleet
    fleet.kill_all()


def test_a_bug_that_ends_a_process_is_a_crash_with_what_it_said(fleet):
    (crash,) = fleet.ended("raise RuntimeError('a bug in the shell')")
    assert "exit code 1" in crash
    assert "a bug in the shell" in crash
    assert (fleet.restarts, fleet.kills) == (1, 0)


@pytest.mark.parametrize("role", ["worker", "client"])
def test_a_process_that_ends_without_being_asked_to_is_a_crash(fleet, role):
    assert "exit code 0" in fleet.ended("", role=role)[0]


def test_a_process_that_was_asked_to_end_and_fails_is_a_crash(fleet):
    fleet.run("raise SystemExit(1)", role="client", ending=True).process.wait()
    assert fleet.end("client", 10.0) == []
    assert "exit code 1" in fleet.crashes[0]


def test_a_process_that_died_before_it_was_asked_to_end_is_a_crash_too(fleet):
    fleet.run("raise SystemExit(5)").process.wait()
    fleet.end("worker", 10.0)
    assert "exit code 5" in fleet.crashes[0]


def test_whoever_ends_well_after_it_was_asked_to_has_not_crashed(fleet):
    fleet.run("", role="client", ending=True).process.wait()
    assert fleet.end("client", 10.0) == []
    assert fleet.crashes == []


def test_complaints_on_the_way_to_a_good_end_are_found(fleet):
    code = "import sys; print('Task exception was never retrieved', file=sys.stderr)"
    assert "with complaints" in fleet.ended(code, ending=True)[0]


SUICIDE = "import os; os.kill(os.getpid(), 9)"


def test_a_kill_is_ours_or_ordered_or_a_crash(fleet):
    fleet.send(fleet.run("import signal; signal.pause()"), signal.SIGKILL)
    fleet.restart_dead()
    assert fleet.kills == 1
    assert fleet.ended(SUICIDE, log="start a 1 1\ncrash a\n") == []
    assert fleet.kills == 2
    assert f"exit code -{signal.SIGKILL.value}" in fleet.ended(SUICIDE)[0]


def test_whoever_does_not_end_in_time_is_killed_and_named(fleet, monkeypatch):
    fleet.run("import signal; signal.pause()")
    monkeypatch.setattr("campaign.fleet.signal.SIGTERM", signal.SIGCONT)
    assert fleet.end("worker", 0.0) == ["worker-0-1"]
    assert fleet.crashes == []


REFUSE = f"raise SystemExit({REFUSED})"
SAID = f"refused {XDEL}\n"


def test_a_refusal_is_explained_by_the_right_that_was_taken_away(fleet):
    fleet.denials.append(Denial("XDEL"))
    assert fleet.ended(REFUSE, log=SAID) == []
    assert fleet.refusals == {f"worker: {XDEL}": 1}


@pytest.mark.parametrize(
    ("denial", "said", "started"),
    [
        (None, SAID, 0.0),
        (Denial("XDEL"), "", 0.0),
        (Denial("XDEL"), "refused user 'default' may not run XADD\n", 0.0),
        (Denial("XDEL", end=-REFUSAL - 1.0), SAID, -1e9),
        (Denial("XDEL", end=1e12), SAID, 1e13),
    ],
    ids=["nothing was taken", "no reason", "another right", "long ago", "before it began"],
)
def test_a_refusal_without_such_a_reason_is_a_crash(fleet, denial, said, started):
    fleet.denials += [denial] if denial else []
    (crash,) = fleet.ended(REFUSE, log=said, started=started)
    assert f"exit code {REFUSED}" in crash


class Log(list):
    def write(self, *words):
        self.append(" ".join(map(str, words)))


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: ExceptionGroup("n", [ExceptionGroup("m", [e])])])
def test_a_refusal_ends_a_process_in_order_alone_or_in_a_group(wrap):
    def body():
        raise wrap(PermissionMissing(XDEL))

    log = Log()
    assert exit_code(body, log) == REFUSED
    assert log == [f"refused {XDEL}"]


def test_other_errors_pass_even_beside_a_refusal():
    def body():
        raise ExceptionGroup("n", [PermissionMissing(XDEL), KeyError("a bug")])

    with pytest.raises(ExceptionGroup, match="n") as caught:
        exit_code(body, Log())
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


def test_whoever_is_not_up_yet_is_spared(fleet):
    member = fleet.run("import signal; signal.pause()")
    member.log.write_text("")
    assert fleet.pick("worker") is None
    member.log.write_text("ready sync RedisDriver redis\n")
    assert fleet.pick("worker") is member


def test_each_pair_of_shell_and_library_has_its_turn():
    shells, schemes = ("sync", "asyncio", "trio"), ("redis", "valkey")
    turns = [pairs(shells, schemes, number) for number in range(6)]
    assert len(set(turns)) == 6
    for start in (0, 3):
        assert [shell for shell, _ in turns[start : start + 3]] == list(shells)
    assert pairs(shells, schemes, 6) == turns[0]
    assert [pairs(("trio",), ("redis", "valkey"), n) for n in range(2)] == [("trio", "redis"), ("trio", "valkey")]


def test_successive_processes_of_a_role_run_on_each_pair(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command[2:5]))
    fleet = Fleet(tmp_path, Random(1), 1.0)
    members = [fleet.add("client", 1) for _ in range(3)]
    for _ in range(3):
        fleet.start(members[0])
    expected = {(shell, scheme) for shell in ("sync", "asyncio", "trio") for scheme in ("redis", "valkey")}
    assert {(shell, url.partition("://")[0]) for _, shell, url in started} == expected

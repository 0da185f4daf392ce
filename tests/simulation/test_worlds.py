"""Worlds: a fixed set and a fresh one, the same story twice, and each safeguard taken away."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streamfleet_core.pressure import Pressure
from streamfleet_core.publishing import Publisher
from streamfleet_core.reclaiming import Reclaimer
from streamfleet_core.timekeeping import Timekeeper
from streamfleet_core.worker import WorkerMachine

from . import faults as inflicting
from .ablations import ABLATIONS, without
from .campaign import survey
from .cli import main
from .plan import PROFILES, Act, Attempt, Fault, Kind, Network, Plan, TaskPlan, draw
from .processes import MAX_TURNS
from .shrink import _shorter, describe, shrink
from .world import run

FIXED = 120


DEPARTURES = (
    "ended while stopping",
    "drained too short",
    "interrupted",
    "given back by handlers",
    "abandoned",
    "abandoned though tracked",
)
"""What is counted when processes leave in the middle of their work; see `processes`."""


def test_a_fixed_set_of_worlds_violates_nothing():
    report = survey(range(FIXED))
    assert report.violating == {}
    assert report.seeds == FIXED
    assert report.counts["faults"] > FIXED
    assert report.counts["reclaimed"] > 0
    assert [what for what in DEPARTURES if not report.counts[what]] == []


def test_in_closing_worlds_processes_leave_in_the_middle_of_their_work():
    report = survey(range(30), "closing")
    assert report.violating == {}
    assert [what for what in DEPARTURES if not report.counts[what]] == []


def test_a_fresh_set_of_worlds_violates_nothing():
    first, seeds = int(os.environ["FRESH_SEED"]), int(os.environ["FRESH_SEEDS"])  # drawn and told in conftest.py
    report = survey(range(first, first + seeds))
    assert report.seeds == seeds > 0
    commands = [f"make simulate SEED={seed}" for seed in report.violating]
    assert not commands, f"{commands}: {report.violating}"


KILLED = """
import os, pathlib
from simulation import test_worlds
def killed(seeds):
    pathlib.Path("begun").write_text(str(seeds[0]))
    os._exit(9)
test_worlds.survey = killed
from simulation.test_worlds import test_a_fresh_set_of_worlds_violates_nothing
"""


@pytest.mark.parametrize("options", [[], ["-q"]])
def test_the_seeds_of_fresh_worlds_are_told_even_if_the_run_is_killed(options, tmp_path):
    tests = Path(__file__).parents[1]
    shutil.copy(tests / "conftest.py", tmp_path)
    (tmp_path / "test_killed.py").write_text(KILLED)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRESH_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 9
    (first,) = re.findall(r"^fresh simulated worlds: make simulate FIRST=(\d+) SEEDS=80$", done.stdout, re.M)
    assert (tmp_path / "begun").read_text() == first


@pytest.mark.parametrize("profile", PROFILES)
def test_worlds_of_every_sort_do_something(profile):
    report = survey(range(4), profile)
    assert report.violating == {}
    assert report.counts["terminal"] > 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_without_a_safeguard_invariants_break(name):
    """Stops at the first violation; that all is well with the safeguard is shown on the same world."""
    ablation = ABLATIONS[name]
    report = survey(range(ablation.within), ablation.profile, ablation=name, first_only=True)
    assert report.violating, f"{ablation.within} worlds without {name}, and nothing was violated"
    (seed,) = report.violating
    assert run(draw(seed, ablation.profile)).violations == []


def test_taking_a_safeguard_away_ends_with_its_block():
    from streamfleet_core import safeguards

    for name, ablation in ABLATIONS.items():
        before = {function: getattr(safeguards, function) for function in ablation.replacements}
        with without(name):
            assert all(getattr(safeguards, function) is not original for function, original in before.items())
        assert all(getattr(safeguards, function) is original for function, original in before.items())


@pytest.mark.parametrize("seed", [3, 17, 58])
def test_a_seed_tells_the_same_story_each_time(seed):
    one, other = run(draw(seed), hashed=True), run(draw(seed), hashed=True)
    assert one.digest == other.digest != ""
    assert one.events == other.events
    assert run(draw(seed + 1), hashed=True).digest != one.digest


def test_a_story_does_not_depend_on_the_process_that_tells_it():
    program = "from simulation.plan import draw; from simulation.world import run\n"
    program += "print(run(draw(58), hashed=True).digest)"
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert digests == {run(draw(58), hashed=True).digest}


# ---- by hand ----------------------------------------------------------------------------------------


def task(number: int, *script: Attempt, **more: object) -> TaskPlan:
    return TaskPlan(number, 0.5, 0, 0, script or (Attempt(Act.OK, 0.01),), **more)


def world(*tasks: TaskPlan, faults: tuple[Fault, ...] = (), **more: object) -> Plan:
    return Plan(seed=1, profile="by hand", tasks=tasks, faults=faults, horizon=8.0, **more)


def test_without_faults_each_task_runs_once():
    result = run(world(*(task(number, tracked=True) for number in range(20))))
    assert result.violations == []
    assert (result.counts["tasks"], result.counts["runs"], result.counts["terminal"]) == (20, 20, 20)
    assert result.counts["reclaimed"] == result.counts["recovered"] == 0


def test_a_task_that_kills_its_workers_ends_among_the_dead_letters():
    result = run(world(task(0, Attempt(Act.POISON, 0.1)), workers=3))
    assert result.violations == []
    assert result.counts["runs"] == 5
    assert result.counts["DEAD_LETTERED"] == 1


def test_a_killed_workers_task_runs_elsewhere():
    faults = (Fault(1.0, Kind.CRASH_WORKER, 0, 60.0), Fault(1.0, Kind.CRASH_WORKER, 1, 0.1))
    result = run(world(task(0, Attempt(Act.OK, 2.0)), faults=faults))
    assert result.violations == []
    assert result.counts["runs"] == 2
    assert result.counts["recovered"] == 1


def test_a_server_that_loses_everything_gets_back_what_clients_keep():
    faults = (Fault(1.0, Kind.WIPE, 0, 0.5),)
    result = run(world(*(task(number, Attempt(Act.OK, 3.0)) for number in range(8)), faults=faults))
    assert result.violations == []
    assert result.counts["MARKER_REGRESSED"] == 1
    assert result.counts["terminal"] == 8
    assert result.counts["lost"] == 0


ABANDONED = (Fault(1.0, Kind.DOWN, 0, 6.0), Fault(1.2, Kind.CLOSE_CLIENT, 0, 0.5))
"""A client is closed in an outage, and has half a second for it."""


def unsent(number):
    return replace(task(number, tracked=number % 2 == 0), at=1.1)


def test_what_a_client_cannot_send_before_it_closes_is_given_up():
    result = run(world(*(unsent(number) for number in range(6)), faults=ABANDONED))
    assert result.violations == []
    assert (result.counts["abandoned"], result.counts["abandoned though tracked"]) == (6, 3)
    assert result.counts["runs"] == 0


def test_handlers_that_obey_give_their_entries_back_when_contact_is_lost():
    faults = (Fault(1.0, Kind.PARTITION, 0, 6.0),)
    plan = world(task(0, Attempt(Act.OK, 5.5)), faults=faults, workers=1, obedient=1)
    results = [run(replace(plan, seed=seed)) for seed in range(5)]
    assert [one.violations for one in results] == [[]] * 5
    assert sum(one.counts["given back by handlers"] for one in results) >= 3
    assert run(replace(plan, obedient=0)).counts["interrupted"] == 0


# ---- liveness ---------------------------------------------------------------------------------------

LEFT = (
    "left unsent",
    "left in queues",
    "left in schedules",
    "left with the dead",
    "left while memory is full",
)
"""What is counted when faults stop; see `world`."""


def test_worlds_drain_from_the_middle_of_their_work():
    report = survey(range(30), "liveness")
    assert report.violating == {}
    assert min(report.counts[what] for what in LEFT) >= 5
    assert report.counts["left in queues"] > 300
    assert 0.0 < max(report.shares)[0] < 0.5, "slower than these worlds have ever been"


def test_the_command_tells_how_much_of_the_bound_was_used(capsys):
    assert main(["--mode", "liveness", "--seeds", "3"]) == 0
    (line,) = re.findall(r"^drained within (.*)$", capsys.readouterr().out, re.M)
    shares = {seed: run(draw(seed, "liveness")).share for seed in range(3)}
    worst = max(shares, key=lambda seed: shares[seed])
    middle = sorted(shares.values())[1]
    assert line == f"{shares[worst]:.3f} of the bound at worst (seed {worst}), {middle:.3f} in the median"


def test_a_worker_that_never_sees_that_there_is_memory_again_does_not_drain(monkeypatch):
    rise = Pressure.rise

    def rise_for_ever(pressure, now):
        return rise(pressure, now + 1e9)

    monkeypatch.setattr(Pressure, "rise", rise_for_ever)
    tasks = [task(number, Attempt(Act.FAIL, 1.0)) for number in range(4)]
    assert "I15" in dict(run(world(*tasks, faults=(Fault(1.0, Kind.FULL, 1, 3.0),))).violations)


def test_a_fleet_that_does_not_take_over_from_the_dead_does_not_drain(monkeypatch):
    monkeypatch.setattr(Reclaimer, "_suspects", lambda *_: [])
    faults = (Fault(2.0, Kind.CRASH_WORKER, 0, 60.0), Fault(2.0, Kind.CRASH_WORKER, 1, 60.0))
    assert "I15" in dict(run(world(task(0, Attempt(Act.OK, 5.0)), faults=faults)).violations)


@pytest.mark.parametrize("age", [0, 1])
def test_a_full_server_takes_nothing_new(age):
    """Clients wait for memory, workers go on with what needs none."""
    early = [task(number, Attempt(Act.OK, 1.0)) for number in range(4)]
    late = [replace(task(number, Attempt(Act.OK, 0.01)), at=1.1) for number in range(4, 8)]
    result = run(world(*early, *late, faults=(Fault(1.0, Kind.FULL, age, 5.0),)), keep_trace=True)
    assert result.violations == []
    assert result.counts["runs"] == result.counts["terminal"] == 8
    accepted = [float(line.split()[0]) for line in result.lines if "server accepts" in line]
    assert max(accepted[:4]) < 1.0
    assert min(accepted[4:]) > 6.0
    ended = [float(line.split()[0]) for line in result.lines if "has ended: completed" in line]
    assert max(ended[:4]) < 6.0


# ---- broken products --------------------------------------------------------------------------------


@pytest.fixture
def crashing(monkeypatch):
    """A product that cannot take a handler's failure."""

    def handler_failed(*_, **__):
        raise KeyError("injected")

    monkeypatch.setattr(WorkerMachine, "handler_failed", handler_failed)


@pytest.mark.usefixtures("crashing")
def test_an_exception_in_the_core_is_a_violation_of_its_world():
    result = run(world(task(0, Attempt(Act.FAIL, 0.01)), task(1)), keep_trace=True)
    (crash,) = result.violations
    assert crash[0] == "crash"
    assert "KeyError: 'injected' (test_worlds.py:" in crash[1]
    story = "\n".join(result.lines)
    assert "Traceback (most recent call last)" in story
    assert ", in _handled" in story


@pytest.mark.usefixtures("crashing")
def test_an_exception_in_the_core_does_not_end_the_campaign(capsys):
    assert main(["--seeds", "6", "--profile", "late"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^seed \d+ violates crash: .*KeyError: 'injected'", told, re.M)
    assert "make simulate SEED=0 PROFILE=late" in told
    assert "the essence of seed 0, which violates crash:" in told
    assert told.splitlines()[-1].startswith("6 seeds, ")
    assert main(["--seed", "0", "--profile", "late", "--no-shrink"]) == 1
    assert "violated crash: " in capsys.readouterr().out


def test_a_client_that_leaves_its_users_waiting_is_found(monkeypatch):
    monkeypatch.setattr(Publisher, "abandon", lambda _: None)
    result = run(world(unsent(0), faults=ABANDONED))
    assert "I7" in {invariant for invariant, _ in result.violations}


def test_a_stopped_handlers_entry_that_is_not_given_back_is_found(monkeypatch):
    monkeypatch.setattr(WorkerMachine, "handler_stopped", lambda *_: None)
    faults = (Fault(1.0, Kind.PARTITION, 0, 2.9),)
    plan = world(task(0, Attempt(Act.OK, 5.5)), faults=faults, workers=1, obedient=1)
    results = [run(replace(plan, seed=seed)) for seed in range(5)]
    assert any("I15" in dict(one.violations) for one in results)


def test_an_interrupt_ends_the_campaign(monkeypatch):
    def handler_failed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerMachine, "handler_failed", handler_failed)
    with pytest.raises(KeyboardInterrupt):
        main(["--seeds", "6", "--profile", "late"])


def test_a_loop_that_turns_at_one_instant_is_a_violation_of_its_world(monkeypatch):
    monkeypatch.setattr(Timekeeper, "deadline", lambda _: 0.0)
    assert_spins(run(world(task(0), workers=1)), "at 0.0")


def test_a_loop_that_hardly_rests_is_a_violation_of_its_world(monkeypatch):
    tick = Timekeeper.tick

    def hasty(keeper, now):
        tick(keeper, now)
        keeper.next_tick = now + 0.0004

    monkeypatch.setattr(Timekeeper, "tick", hasty)
    assert_spins(run(world(task(0), workers=1)), "at 0.")


def assert_spins(result, when):
    ((invariant, text),) = result.violations
    assert invariant == "spin"
    assert text.startswith(when)
    assert text.endswith(f"w0.1 takes more than {MAX_TURNS} turns within a second")


# ---- the essence, and the command -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seed", "tasks", "faults"), [("marker", 0, 1, 0), ("fence", 12, 3, 1)])
def test_a_violating_world_is_reduced_to_its_essence(name, seed, tasks, faults):
    """Fewer tasks, faults and actors, and shorter; and what is left still shows it."""
    with without(name):
        plan = draw(seed, ABLATIONS[name].profile)
        invariant = run(plan).violations[0][0]
        smallest = shrink(plan, invariant)
        assert any(violated == invariant for violated, _ in run(smallest).violations)
    assert len(smallest.tasks) <= tasks < len(plan.tasks)
    assert len(smallest.faults) == faults <= len(plan.faults)
    assert smallest.network.calm
    assert smallest.workers <= 1 + faults
    assert (smallest.clients, smallest.queues, smallest.concurrency, smallest.obedient) == (1, 1, 1, 0)
    assert smallest.horizon < 6.0 < plan.horizon
    assert smallest.tasks[0].at < 0.5
    assert f"task {smallest.tasks[0].number}" in describe(smallest)


def test_pauses_are_cut_and_faults_shortened(monkeypatch):
    """A defect that any outage shows, however late and however short."""
    monkeypatch.setattr(inflicting, "_up", broken_up)
    late = (replace(task(0), at=3.0), replace(task(1), at=9.0))
    plan = world(*late, faults=(Fault(10.0, Kind.DOWN, 0, 4.0), Fault(20.0, Kind.DOWN, 0, 4.0)))
    smallest = shrink(replace(plan, horizon=30.0), "broken")
    assert (smallest.tasks, len(smallest.faults)) == ((), 1)
    (fault,) = smallest.faults
    assert fault.at <= 0.2
    assert fault.amount <= 0.2
    assert smallest.horizon < 0.8


def broken_up(broken):
    broken.server.up = True
    broken.violated("broken", "it was down")


def test_without_time_all_that_comes_later_comes_earlier():
    plan = world(task(0), replace(task(1), at=5.0), faults=(Fault(6.0, Kind.DOWN, 0, 1.0),))
    shorter = next(one for one in _shorter(plan) if one.tasks != plan.tasks and one.tasks[0].at == 0.5)
    assert shorter.tasks[1].at == pytest.approx(0.6)
    assert shorter.faults[0].at == pytest.approx(1.6)
    assert shorter.horizon == pytest.approx(plan.horizon - 4.4)


def test_the_story_names_whom_faults_strike_and_tells_of_their_ends():
    many = (
        Fault(1.0, Kind.SUSPEND_WORKER, 3, 1.5),
        Fault(1.1, Kind.SUSPEND_CLIENT, 0, 0.5),
        Fault(3.0, Kind.CRASH_WORKER, 0, 0.5),
        Fault(4.0, Kind.PARTITION, 1, 0.5),
        Fault(5.0, Kind.DOWN, 4, 0.5),
        Fault(6.0, Kind.SLOW, 5, 0.5),
        Fault(7.0, Kind.FULL, 1, 0.5),
        Fault(7.6, Kind.DESTROY_GROUP, 0),
        Fault(7.7, Kind.CLOSE_CLIENT, 0, 2.0),
    )
    retried = task(0, Attempt(Act.FAIL, 0.01), Attempt(Act.OK, 0.01))
    story = "\n".join(run(world(retried, faults=many), keep_trace=True).lines)
    for line in (
        r"0\.0000  w1\.1 +started",
        r"RETRIED\] task 0: attempt failed",
        r"1\.0000  fault +SUSPEND_WORKER w1\.1 1\.5 s",
        r"1\.1000  fault +SUSPEND_CLIENT c0\.1 0\.5 s",
        r"1\.6000  c0\.1 +resumed",
        r"2\.5000  w1\.1 +resumed",
        r"3\.0000  fault +CRASH_WORKER w0\.1 0\.5 s",
        r"3\.0000  w0\.1 +killed",
        r"3\.5000  w0\.2 +started",
        r"4\.0000  fault +PARTITION w1\.1 0\.5 s",
        r"4\.5000  w1\.1 +can reach the server again",
        r"5\.0000  fault +DOWN server 0\.5 s",
        r"5\.5000  server +is up again",
        r"6\.5000  server +answers again",
        r"7\.5000  server +has memory again",
        r"7\.6000  fault +DESTROY_GROUP q0$",
        r"7\.7000  fault +CLOSE_CLIENT c0\.1 2 s",
        r"7\.7000  c0\.2 +started",
    ):
        assert re.search(line, story, re.M), line


def test_the_command_ends_with_its_figures(capsys):
    assert main(["--seeds", "3", "--profile", "calm"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("3 seeds, 0 violations, ")
    assert last.endswith(" events")


def test_the_command_tells_how_to_replay_a_violation(monkeypatch, capsys):
    monkeypatch.setattr(WorkerMachine, "handler_stopped", lambda *_: 1 / 0)
    assert main(["--seeds", "20", "--profile", "partitions", "--no-shrink"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"replay: make simulate SEED=\d+ PROFILE=partitions$", told, re.M)
    assert "20 seeds, 0 violations" not in told


def test_the_command_tells_at_which_seed_a_safeguard_is_missed(capsys):
    assert main(["--without", "marker", "--no-shrink"]) == 0
    told = capsys.readouterr().out
    assert "make simulate SEED=0 WITHOUT=marker" in told
    assert told.endswith("marker: found at seed 0, within 100 stated\n")
    assert main(["--without", "marker", "--seed", "0", "--no-shrink"]) == 0
    assert "server accepts task" in capsys.readouterr().out


def test_the_command_fails_when_a_safeguard_is_not_missed(monkeypatch, capsys):
    unchanged = replace(ABLATIONS["fence"], within=3, replacements={})
    monkeypatch.setitem(ABLATIONS, "fence", unchanged)
    assert main(["--without", "fence"]) == 1
    assert capsys.readouterr().out == "fence: not found in 3 seeds, within 3 stated\n"
    assert main(["--without", "fence", "--seed", "0"]) == 1


def test_a_safeguard_that_is_missed_too_late_fails_the_command(monkeypatch, capsys):
    late = replace(ABLATIONS["fence"], within=1)
    monkeypatch.setitem(ABLATIONS, "fence", late)
    assert main(["--without", "fence", "--seeds", "60", "--no-shrink"]) == 1
    assert re.search(r"^fence: found at seed \d+, within 1 stated$", capsys.readouterr().out, re.M)


def test_the_documentation_states_within_how_many_seeds_each_safeguard_is_missed():
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "proof.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \| (\d+) \|$", page, re.M)
    assert rows == [(name, one.profile, str(one.within)) for name, one in ABLATIONS.items()]


def test_the_command_tells_the_story_of_one_seed(capsys):
    assert main(["--seed", "5", "--profile", "crashes"]) == 0
    told = capsys.readouterr().out
    assert "CRASH_WORKER" in told
    assert "server accepts task" in told
    assert told.splitlines()[-1].startswith("1 seeds, 0 violations, ")


def test_networks_are_calm_or_not():
    assert Network().calm
    assert not Network(late=0.1).calm

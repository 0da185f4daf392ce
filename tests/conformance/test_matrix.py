"""The suite over each shell and driver, each kind of server once, and each day one cell more.

`make conformance` runs all cells, and writes the page on what works with what.
"""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from streamfleet_conformance.cells import cells
from streamfleet_conformance.servers import SYSTEM_PACKAGES, WHEELS, available, binary

AT_ONCE = 6
"""A cell mostly waits for leases: two cores are not busy with it."""
LONGEST = 300.0
"""Seconds for one cell on a busy machine."""

OPTIONAL = ("redis-7.0",)
"""Servers that come with the system rather than from a wheel: run where they are."""

EVERY_DAY = [
    ("sync", "redis", "valkey-9.1"),
    ("sync", "valkey", "redis-8.2"),
    ("asyncio", "redis", "redis-8.2"),
    ("asyncio", "valkey", "valkey-9.1"),
    ("trio", "trio", "valkey-9.1"),
    *(("sync", "redis", server) for server in OPTIONAL if server in available()),
    ("sync", "memory", "memory"),
    ("sync", "fake", "fakeredis"),
    ("asyncio", "memory", "memory"),
    ("trio", "memory", "memory"),
]


def of_the_day():
    """The others take turns, so that each has run after some weeks of work, at the cost of one."""
    others = [cell for cell in cells() if cell not in EVERY_DAY]
    return [others[date.today().toordinal() % len(others)]] if others else []


CELLS = EVERY_DAY + of_the_day()


def run_cell(shell, driver, server, path):
    command = [sys.executable, "-m", "streamfleet_conformance", "--shell", shell, "--driver", driver]
    done = subprocess.run(
        [*command, "--server", server, "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        cwd=path.parent,
    )
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """A future for each cell that was selected."""
    folder = tmp_path_factory.mktemp("matrix")
    chosen = {item.callspec.params["cell"] for item in request.session.items if "cell" in cell_params(item)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            cell: pool.submit(run_cell, *cell, folder / f"{'-'.join(cell)}.json")
            for cell in CELLS
            if cell in chosen
        }


def cell_params(item):
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.mark.parametrize("cell", CELLS, ids="-on-".join)
def test_the_suite_passes(runs, cell):
    done, results = runs[cell].result()
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    last = done.stdout.splitlines()[-1]
    assert last == f"{results['passed']} passed, 0 failed, {results['not_supported']} not supported"
    assert results["passed"] > 150
    assert results["left_out"] == 0
    # Nothing is left unsupported but for a reason that the driver has declared.
    unsupported = [case for case in results["cases"] if case["outcome"] == "not supported"]
    assert all(case["detail"].startswith("the driver declares as missing") for case in unsupported)
    assert bool(unsupported) == (cell[1] in ("memory", "fake"))


SUPPORT = Path(__file__).parents[2] / "docs" / "reference" / "support.json"
FIGURES = ("passed", "not_supported", "missing", "suite")
IN_PROCESS = ("memory", "fakeredis")


@pytest.fixture(scope="module")
def kept():
    """What the page is made from, by cell."""
    return {(c["shell"], c["driver"], c["server"]): c for c in json.loads(SUPPORT.read_text("utf-8"))}


@pytest.mark.parametrize("cell", CELLS, ids="-on-".join)
def test_the_page_on_support_says_the_same(runs, kept, cell):
    """What `make conformance` has written is what this cell gives now."""
    _, results = runs[cell].result()
    said = {name: kept[cell][name] for name in FIGURES}
    assert said == {name: results[name] for name in FIGURES}, "run `make conformance`"


def test_the_page_on_support_has_each_cell_and_no_other(kept):
    """But for servers that are not here, and for those of this machine that nobody asked for."""
    here = {*IN_PROCESS, *available()}
    known = {*IN_PROCESS, *WHEELS, *SYSTEM_PACKAGES}
    assert {cell for cell in kept if cell[2] in here} == {cell for cell in cells() if cell[2] in known}
    assert {cell[2] for cell in kept} <= known, "run `make conformance`"


def test_the_page_on_support_is_of_the_cases_that_there_are(kept, tmp_path):
    path = tmp_path / "suite.json"
    command = [sys.executable, "-m", "streamfleet_conformance", "--json", str(path), "--", "--collect-only"]
    subprocess.run(command, check=True, capture_output=True, timeout=LONGEST, cwd=tmp_path)
    suite = json.loads(path.read_text("utf-8"))["suite"]
    assert {cell["suite"] for cell in kept.values()} == {suite}, "run `make conformance`"


@pytest.mark.parametrize("server", [name for name in available() if name in WHEELS])
def test_the_page_on_support_is_of_the_servers_that_there_are(kept, server):
    """Patch versions too, where the project and not the machine brings the server."""
    said = subprocess.run([binary(server), "--version"], capture_output=True, text=True, check=True).stdout
    versions = {cell["version"] for place, cell in kept.items() if place[2] == server}
    assert [f" v={version} " in said for version in versions] == [True], "run `make conformance`"


@pytest.fixture
def make_support():
    path = SUPPORT.parents[1] / "make_support.py"
    spec = importlib.util.spec_from_file_location("make_support", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_support_is_made_from_its_results(make_support):
    page = SUPPORT.with_name("support.md").read_text("utf-8")
    assert page == make_support.page(json.loads(SUPPORT.read_text("utf-8"))), "run `make docs`"


def test_a_run_of_all_cells_tells_of_each_that_failed(make_support, monkeypatch, capsys, tmp_path):
    results = json.loads(SUPPORT.read_text("utf-8"))
    passing = results[0]
    ended = {"redis": (1, "E boom\n1 failed"), "valkey": (-9, "")}

    def run(command, **settings):
        driver, path = command[command.index("--driver") + 1], Path(command[command.index("--json") + 1])
        code, said = ended.get(driver, (0, "all passed"))
        if not code:
            path.write_text(json.dumps(passing), "utf-8")
        return subprocess.CompletedProcess(command, code, said, f"stderr of {driver}")

    monkeypatch.setattr(make_support.subprocess, "run", run)
    monkeypatch.setattr("streamfleet_conformance.cells.cells", lambda: RUN)
    monkeypatch.setattr(sys, "argv", ["make_support.py", "run"])
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(make_support, name, tmp_path / name)
    assert make_support.main() == 1
    told = capsys.readouterr()
    assert told.out.count("\n") == len(RUN), "each cell is told of when it ends"
    for part in (
        "sync redis one failed:\nE boom",
        "sync valkey one failed:",
        "trio redis two failed:",
        "stderr of",
    ):
        assert part in told.err
    assert told.err.splitlines()[-1] == "3 of 5 cells failed"
    assert list(tmp_path.iterdir()) == [], "a failure is not written down"
    ended.clear()
    assert make_support.main() == 0
    assert json.loads((tmp_path / "RESULTS").read_text("utf-8")) == [passing] * len(RUN)
    assert "What works with what" in (tmp_path / "PAGE").read_text("utf-8")


RUN = [
    ("sync", "redis", "one"),
    ("sync", "memory", "one"),
    ("sync", "valkey", "one"),
    ("trio", "redis", "two"),
    ("trio", "trio", "two"),
]

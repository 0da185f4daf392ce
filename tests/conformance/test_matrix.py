"""The conformance suite over every driver of the threads shell and the servers that are here."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamfleet_conformance.servers import available

AT_ONCE = 5
"""A cell mostly waits for leases: two cores are not busy with it."""
LONGEST = 300.0
"""Seconds for one cell on a busy machine."""

OPTIONAL = ("redis-7.0",)
"""Servers that come with the system rather than from a wheel: run where they are."""

CELLS = [
    ("redis", "valkey-9.1"),
    ("redis", "redis-8.2"),
    ("valkey", "valkey-9.1"),
    *(("redis", server) for server in OPTIONAL if server in available()),
    ("memory", "memory"),
    ("fake", "fakeredis"),
]


def run_cell(driver, server, path):
    command = [sys.executable, "-m", "streamfleet_conformance", "--shell", "sync", "--driver", driver]
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
    assert bool(unsupported) == (cell[0] in ("memory", "fake"))

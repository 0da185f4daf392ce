"""A short campaign on real servers, with a fixed seed; the long one is ``make chaos``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SEED, SECONDS = 20261124, 55
SERVERS = "valkey-9.1", "redis-8.2"
OPTIONS = ["--seconds", str(SECONDS), "--seed", str(SEED), "--every", "0.45"]

NETWORK = {"REQUEST_LOST", "REPLY_LOST", "DELIVERED_LATE", "CUT", "SLOW"}
MEDDLING = {
    *("worker SIGKILL", "worker SIGSTOP", "client SIGKILL", "client SIGSTOP", "server SIGKILL", "server SIGSTOP"),
    *("CLIENT KILL", "CLIENT PAUSE", "OOM", "ACL -xdel"),
    *("receiver DEL", "XGROUP DESTROY", "XGROUP DELCONSUMER"),
}
KINDS = {
    *("sync on redis-py", "sync on valkey-py", "asyncio on redis-py", "asyncio on valkey-py"),
    *("trio on TrioDriver (redis://)", "trio on TrioDriver (valkey://)"),
}


@pytest.fixture(scope="module")
def campaigns():
    command = ["-m", "campaign", "--server", ",".join(SERVERS), *OPTIONS]
    # Before it starts: should it hang, this is what is known of it.
    print(f"again: PYTHONPATH=tests/chaos python {' '.join(command)}", flush=True)
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    finished = subprocess.run(
        [sys.executable, *command, "--json"], env=environment, stdout=subprocess.PIPE, text=True, timeout=400
    )
    figures = json.loads(finished.stdout)
    assert [column["server"].split()[0] for column in figures] == list(SERVERS)
    assert (finished.returncode == 0) == all(column["good"] for column in figures)
    return figures


def test_nothing_is_lost_or_doubled(campaigns):
    for campaign in campaigns:
        assert campaign["good"], json.dumps(campaign, indent=1)


def test_the_campaign_was_one(campaigns):
    """Each kind of fault has happened, and most tasks got through all the same."""
    for campaign in campaigns:
        happened = {
            name for part in ("network_faults", "meddling") for name, count in campaign[part].items() if count
        }
        assert happened == NETWORK | MEDDLING
        assert campaign["faults"] >= 150
        assert campaign["kills"] >= 20
        assert campaign["refused"] >= 1
        assert campaign["offered"] >= SECONDS * 50
        assert campaign["accepted"] >= 0.8 * campaign["offered"]
        assert campaign["completed"] >= 0.9 * campaign["accepted"]
        assert campaign["ran_twice"] >= 1
        for kind, least in (("dead", 10), ("cancelled", 10), ("expired", 1)):
            assert campaign[kind] >= least, kind


def test_each_shell_on_each_library_took_part_as_worker_and_as_client(campaigns):
    for campaign in campaigns:
        for role, parts in campaign["roster"].items():
            assert parts.keys() == KINDS, role
            for shell in ("sync", "asyncio", "trio"):
                tasks = sum(part["tasks"] for kind, part in parts.items() if kind.startswith(f"{shell} "))
                assert tasks >= 100, (role, shell, parts)
    for role in ("worker", "client"):  # on one of the servers it may have been killed before it had done anything
        for kind in KINDS:
            assert sum(campaign["roster"][role][kind]["tasks"] for campaign in campaigns) >= 10, (role, kind)

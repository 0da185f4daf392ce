"""``python -m campaign --server valkey-9.1 --seconds 60 --seed 1``: one campaign, one verdict."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from campaign.fleet import Fleet
from campaign.history import History
from campaign.leftovers import clock, collected, killed_clients, left_behind
from campaign.monkeys import Monkeys
from campaign.report import Report, markdown
from campaign.roster import roster
from campaign.verdict import judge
from campaign.workload import QUEUES
from streamfleet_conformance.proxy import Fault, FaultProxy
from streamfleet_conformance.servers import launch
from streamfleet_core.keys import queue_keys

RATES = {
    Fault.REQUEST_LOST: 0.002,
    Fault.REPLY_LOST: 0.002,
    Fault.DELIVERED_LATE: 0.001,
    Fault.CUT: 0.001,
    Fault.SLOW: 0.002,
}
PASSED = ("seconds", "seed", "shells", "libraries", "workers", "clients", "rate", "every")
"""Options that make a campaign what it is."""
TICK = 0.05
DRAIN = 90.0
COLLECT = 20.0


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--server", default="valkey-9.1", help="names of the catalogue, separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--shells", default="sync,asyncio,trio", help="of the processes, in turn")
    parser.add_argument("--libraries", default="redis,valkey", help="URL schemes of the processes, in turn")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="tasks per second and client")
    parser.add_argument("--every", type=float, default=0.7, help="mean seconds between two bad things")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="directory for logs, kept")
    return parser.parse_args()


def run(options: argparse.Namespace, directory: Path) -> Report:
    """The campaign: trouble for so many seconds, then quiet until all is drained, then the verdict."""
    rng = Random(options.seed)
    with ExitStack() as stack:
        extra = ("--auto-aof-rewrite-percentage", "0", "--dir", str(directory / "server"))
        (directory / "server").mkdir()
        server = stack.enter_context(launch(options.server, appendonly=True, extra=extra))
        proxies = [stack.enter_context(FaultProxy(server.port)) for _ in range(2)]
        shells, schemes = options.shells.split(","), options.libraries.split(",")
        fleet = Fleet(directory, rng, options.rate, shells, schemes)
        stack.callback(fleet.kill_all)
        monkeys = Monkeys(server, fleet, rng)
        for role, proxy, count in (
            ("worker", proxies[0], options.workers),
            ("client", proxies[1], options.clients),
        ):
            for _ in range(count):
                fleet.add(role, proxy.port)
        for number, proxy in enumerate(proxies):
            proxy.random_faults(Random(options.seed + number), RATES)
        trouble(options, rng, fleet, monkeys)
        for proxy in proxies:
            proxy.calm()
        fleet.resume_all()
        fleet.restart_dead()
        late = fleet.end("client", DRAIN)
        drained = wait_until_drained(monkeys, fleet)
        late += fleet.end("worker", DRAIN)
        late += collect(monkeys, fleet, proxies[0].port)
        server_version = f"{options.server} ({server.version})"
        leftovers = left_behind(monkeys.ask, killed_clients(fleet.logs("client")))
        faults = sum((proxy.counts for proxy in proxies), Counter())
        server.stop()
        history = History().read(directory / "server")
        verdict = judge(history, fleet.logs("client"), fleet.logs("worker"))
        return Report(
            server=server_version,
            seed=options.seed,
            seconds=options.seconds,
            verdict=verdict,
            network_faults={fault.name: count for fault, count in faults.items()},
            meddling=dict(monkeys.counts),
            kills=fleet.kills + monkeys.counts["server SIGKILL"],
            refusals=dict(fleet.refusals),
            crashed=fleet.crashes,
            drained=drained,
            late=late,
            leftovers=leftovers,
            roster={role: roster(role, fleet.logs(role)) for role in ("worker", "client")},
        )


def trouble(options: argparse.Namespace, rng: Random, fleet: Fleet, monkeys: Monkeys) -> None:
    """Bad things happen for so many seconds, and are then undone."""
    started = time.monotonic()
    next_act = started + 1.0
    while (now := time.monotonic()) < started + options.seconds:
        if now >= next_act:
            monkeys.act()
            next_act = now + rng.expovariate(1 / options.every)
        monkeys.undo_due()
        fleet.restart_dead()
        time.sleep(TICK)
    monkeys.undo_everything()


def wait_until_drained(monkeys: Monkeys, fleet: Fleet) -> bool:
    """Do streams and schedules become empty?"""
    keys = [queue_keys(queue) for queue in QUEUES]
    commands = [("XLEN", key.stream) for key in keys] + [("ZCARD", key.schedule) for key in keys]
    deadline = time.monotonic() + DRAIN
    while time.monotonic() < deadline:
        fleet.restart_dead(("worker",))
        if monkeys.ask(*commands, clock())[:-1] == [0] * len(commands):
            return True
        time.sleep(TICK * 2)
    return False


def collect(monkeys: Monkeys, fleet: Fleet, port: int) -> list[str]:
    """A last worker removes what killed clients have left. Returns its name if it did not end in time."""
    fleet.add("worker", port, client_timeout=1.0)
    deadline = time.monotonic() + COLLECT
    while not collected(monkeys.ask) and time.monotonic() < deadline:
        time.sleep(TICK * 2)
    return fleet.end("worker", DRAIN)


def one(options: argparse.Namespace) -> dict[str, Any]:
    """A campaign against one server."""
    with tempfile.TemporaryDirectory(prefix="streamfleet-chaos-") as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        return run(options, directory).as_dict()


def several(options: argparse.Namespace, servers: list[str]) -> list[dict[str, Any]]:
    """Campaigns against several servers at the same time, each in a process of its own."""
    common = [word for name in PASSED for word in (f"--{name}", str(getattr(options, name)))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "campaign", "--server", server, "--json", *common], stdout=subprocess.PIPE
        )
        for server in servers
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


def again(options: argparse.Namespace) -> str:
    """The command that replays this campaign: the same orders and faults, at other moments."""
    words = [f"--{name} {getattr(options, name)}" for name in ("server", *PASSED)]
    return f"PYTHONPATH=tests/chaos python -m campaign {' '.join(words)}"


def main() -> int:
    """Exit code 1 when anything was lost, doubled, invented or left."""
    options = arguments()
    if options.seed is None:
        options.seed = Random().randrange(1 << 30)
    servers = options.server.split(",")
    if not options.json or len(servers) > 1:
        print(f"seed {options.seed}; again: {again(options)}", file=sys.stderr, flush=True)
    figures = [one(options)] if len(servers) == 1 else several(options, servers)
    if options.report:
        options.report.write_text(markdown(figures))
    print(json.dumps(figures if len(servers) > 1 else figures[0]) if options.json else markdown(figures))
    return 0 if all(column["good"] for column in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

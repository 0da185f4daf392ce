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
from campaign.monkeys import Monkeys
from campaign.report import Report, markdown
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
TICK = 0.05
DRAIN = 90.0


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--server", default="valkey-9.1", help="names of the catalogue, separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--shells", default="sync,asyncio,trio", help="of the members, in turn")
    parser.add_argument("--libraries", default="redis,valkey", help="URL schemes of the members, in turn")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rate", type=float, default=150.0, help="tasks per second and client")
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
        fleet = Fleet(directory, rng, options.rate)
        stack.callback(fleet.kill_all)
        monkeys = Monkeys(server, fleet, rng)
        shells, schemes = options.shells.split(","), options.libraries.split(",")
        for role, proxy, count in (
            ("worker", proxies[0], options.workers),
            ("client", proxies[1], options.clients),
        ):
            for number in range(count):
                scheme = schemes[number % len(schemes)]
                url = f"{scheme}://127.0.0.1:{proxy.port}?timeout=3"
                fleet.add(role, shells[number % len(shells)], url)
        for number, proxy in enumerate(proxies):
            proxy.random_faults(Random(options.seed + number), RATES)
        started = time.monotonic()
        next_act = started + 1.0
        while (now := time.monotonic()) < started + options.seconds:
            if now >= next_act:
                monkeys.act()
                next_act = now + rng.expovariate(1 / options.every)
            monkeys.undo_due()
            fleet.restart_dead()
            time.sleep(TICK)
        monkeys.undo_due(everything=True)
        for proxy in proxies:
            proxy.calm()
        fleet.resume_all()
        fleet.restart_dead()
        late = fleet.end("client", DRAIN)
        drained = wait_until_drained(monkeys, fleet)
        late += fleet.end("worker", DRAIN)
        server_version = f"{options.server} ({server.version})"
        leftovers = left_behind(monkeys)
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
            refusals=fleet.refusals,
            drained=drained,
            late=late,
            leftovers=leftovers,
        )


def wait_until_drained(monkeys: Monkeys, fleet: Fleet) -> bool:
    """Do streams and schedules become empty?"""
    keys = [queue_keys(queue) for queue in QUEUES]
    commands = [("XLEN", key.stream) for key in keys] + [("ZCARD", key.schedule) for key in keys]
    deadline = time.monotonic() + DRAIN
    while time.monotonic() < deadline:
        fleet.restart_dead(("worker",))
        if monkeys.ask(*commands) == [0] * len(commands):
            return True
        time.sleep(TICK * 2)
    return False


def left_behind(monkeys: Monkeys) -> list[str]:
    """Keys that nobody declared. Markers and receivers of killed clients wait for their time-outs."""
    replies = monkeys.ask(("KEYS", "*"))
    found = replies[0] if replies and isinstance(replies[0], list) else []
    declared = {
        name
        for queue in QUEUES
        for keys in (queue_keys(queue),)
        for name in (keys.stream, keys.fence, keys.moves, keys.dead, keys.receivers)
    }
    strays = [key.decode() for key in found if isinstance(key, bytes) and key not in declared]
    return [key for key in strays if ":producer:" not in key and not key.startswith("streamfleet:receiver:")]


def one(options: argparse.Namespace) -> dict[str, Any]:
    """A campaign against one server."""
    with tempfile.TemporaryDirectory(prefix="streamfleet-chaos-") as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        return run(options, directory).as_dict()


def several(options: argparse.Namespace, servers: list[str]) -> list[dict[str, Any]]:
    """Campaigns against several servers at the same time, each in a process of its own."""
    passed = ("seconds", "seed", "shells", "libraries", "workers", "clients", "rate", "every")
    common = [word for name in passed for word in (f"--{name}", str(getattr(options, name)))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "campaign", "--server", server, "--json", *common], stdout=subprocess.PIPE
        )
        for server in servers
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


def main() -> int:
    """Exit code 1 when anything was lost, doubled, invented or left."""
    options = arguments()
    if options.seed is None:
        options.seed = Random().randrange(1 << 30)
    servers = options.server.split(",")
    figures = [one(options)] if len(servers) == 1 else several(options, servers)
    if options.report:
        options.report.write_text(markdown(figures))
    print(json.dumps(figures if len(servers) > 1 else figures[0]) if options.json else markdown(figures))
    return 0 if all(column["good"] for column in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

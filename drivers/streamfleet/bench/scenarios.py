"""What is measured. Each scenario takes a contender and gives figures by the names of the table's rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from streamfleet.bench.bare import BareConnection
from streamfleet.bench.orders import QUEUE, Order, Report
from streamfleet.bench.process import AgentProcess
from streamfleet.bench.usage import usage
from streamfleet.drivers import driver_from_url
from streamfleet.embedded import EmbeddedServer
from streamfleet.sync import Client, Worker
from streamfleet.task import Task

Figures: TypeAlias = dict[str, float]
IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; numbers of tasks unless told otherwise."""

    rounds: int = 3
    backlog: int = 20_000
    each: int = 3_000
    wait_one: int = 1_500
    wait_many: int = 6_000
    slow: int = 30
    """At 20 per second."""
    fast: int = 1_200
    """At 1,000 per second."""
    idle_seconds: float = IDLE_SECONDS


QUICK = Sizes(rounds=1, backlog=6_000, each=800, wait_one=400, wait_many=2_000, slow=12, fast=400)


class Bench:
    """The server, and the scenarios on it. Raises what agents and the embedded server raise."""

    def __init__(self, server: EmbeddedServer, sizes: Sizes) -> None:
        self._url = server.url
        self._sizes = sizes
        self._server = BareConnection(server.url)

    def close(self) -> None:
        """Disconnect."""
        self._server.close()

    def scenarios(self) -> list[tuple[str, Callable[[str], Figures]]]:
        """All scenarios for a contender, in the order of a round, with what to call them."""
        return [
            ("backlog, 1 handler", lambda who: self.backlog(who, "enqueue", 1)),
            ("backlog, 10 handlers", lambda who: self.backlog(who, "enqueue", 10)),
            ("backlog, 100 handlers", lambda who: self.backlog(who, "enqueue-many", 100)),
            ("one by one", self.one_by_one),
            ("wait, 1 outstanding", lambda who: self.wait(who, 1)),
            ("wait, 50 outstanding", lambda who: self.wait(who, 50)),
            ("latency at 20/s", lambda who: self.latency(who, "slow", 20.0)),
            ("latency at 1,000/s", lambda who: self.latency(who, "fast", 1000.0)),
        ]

    def backlog(self, contender: str, role: str, concurrency: int) -> Figures:
        """Enqueue a backlog, then drain it by one worker process."""
        tasks = self._sizes.backlog
        self._server.exchange([("FLUSHALL",)])
        with (
            AgentProcess(contender, role, Order(self._url, tasks)) as client,
            AgentProcess(contender, "drain", Order(self._url, tasks, concurrency=concurrency)) as worker,
        ):
            for agent in (client, worker):
                agent.ready()
            before = usage(self._server)
            enqueued = client.run()
            enqueuing = usage(self._server).since(before)
            memory = usage(self._server).memory_bytes - before.memory_bytes
            before = usage(self._server)
            drained = worker.run()
            draining = usage(self._server).since(before)
        self._expect_empty()
        figures = {
            role: tasks / enqueued["seconds"][0],
            f"drain-{concurrency}": tasks / drained["seconds"][0],
            f"worker-cpu-{concurrency}": drained["cpu_seconds"][0] / tasks * 1e6,
        }
        if concurrency == 10:
            figures |= {
                "client-cpu": enqueued["cpu_seconds"][0] / tasks * 1e6,
                "server-cpu": (enqueuing.cpu_seconds + draining.cpu_seconds) / tasks * 1e6,
                "commands": (enqueuing.commands + draining.commands) / tasks,
                "memory": memory / tasks,
                "worker-rss": drained["rss_mb"][0],
            }
        return figures

    def one_by_one(self, contender: str) -> Figures:
        """Enqueue tasks, each accepted before the next."""
        tasks = self._sizes.each
        self._server.exchange([("FLUSHALL",)])
        with AgentProcess(contender, "enqueue-each", Order(self._url, tasks)) as agent:
            report = agent.ready().run()
        return {"enqueue-each": tasks / report["seconds"][0]}

    def wait(self, contender: str, outstanding: int) -> Figures:
        """Enqueue tasks and wait for their outcomes, in one process; a worker in another."""
        tasks = self._sizes.wait_one if outstanding == 1 else self._sizes.wait_many
        client, _ = self._served(contender, "wait", Order(self._url, tasks, outstanding=outstanding))
        if outstanding > 1:
            return {f"wait-{outstanding}": tasks / client["seconds"][0]}
        return _percentiles("wait", client["latencies_us"])

    def latency(self, contender: str, name: str, rate: float) -> Figures:
        """From enqueue in one process to the handler's start in another."""
        tasks = self._sizes.slow if name == "slow" else self._sizes.fast
        _, worker = self._served(contender, "pace", Order(self._url, tasks, rate=rate))
        return _percentiles(name, worker["ages_us"])

    def _served(self, contender: str, role: str, order: Order) -> tuple[Report, Report]:
        self._server.exchange([("FLUSHALL",)])
        served = Order(self._url, order.tasks + 1, concurrency=10)  # one more, for the client warms up
        with (
            AgentProcess(contender, "serve", served) as worker,
            AgentProcess(contender, role, order) as client,
        ):
            worker.ready().begin()
            report = client.ready().run()
            return report, worker.report()

    def _expect_empty(self) -> None:
        (left,) = self._server.exchange([("XLEN", f"streamfleet:{QUEUE}")])
        if left:
            raise AssertionError(f"{left} tasks are left after the drain")


def _percentiles(name: str, microseconds: list[float]) -> Figures:
    cuts = statistics.quantiles(microseconds, n=100, method="inclusive")
    return {f"{name}-p50": cuts[49], f"{name}-p99": cuts[98]}


def idle(seconds: float) -> Figures:
    """Commands per 10 s of a worker and of a client without work, each alone on a server of its own.

    The client has tracked a task, so it listens and beats.
    """
    with EmbeddedServer(appendonly=False) as one, EmbeddedServer(appendonly=False) as other:
        worker = Worker(driver_from_url(one.url))
        worker.handler(QUEUE)(_nothing)
        with worker.running(), Client(driver_from_url(other.url), [QUEUE]) as client:
            client.enqueue_tracked(QUEUE, b"").accepted(10.0)
            time.sleep(1.0)  # until the first beats and looks around are over
            servers = BareConnection(one.url), BareConnection(other.url)
            before = [usage(server) for server in servers]
            time.sleep(seconds)
            spent = [usage(server).since(start) for server, start in zip(servers, before, strict=True)]
            for server in servers:
                server.close()
    scale = IDLE_SECONDS / seconds
    return {"idle-worker": spent[0].commands * scale, "idle-client": spent[1].commands * scale}


def _nothing(task: Task) -> None:
    """The handler of a worker without work."""

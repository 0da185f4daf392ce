"""One worker process of a campaign.

``python -m campaign.worker_process SHELL URL NAME LOG LEASE CLIENT_TIMEOUT``
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign.logfile import LogFile
from campaign.process import exit_code, ready
from campaign.workload import QUEUES
from streamfleet import DoNotRetry, RetryLater, Task, driver_from_url

CONCURRENCY = 4
DRAIN = 5.0


def behave(task: Task, log: LogFile) -> float:
    """Do what the payload asks for. Returns for how long the handler is to take."""
    log.write("start", task.id, task.attempt, task.deliveries)
    kind = json.loads(task.text)["do"]
    if kind == "crash" and task.deliveries == 1 and task.attempt == 1:
        log.write("crash", task.id)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail" or (kind == "fail-once" and task.attempt == 1):
        raise ValueError("as ordered")
    if kind == "refuse":
        raise DoNotRetry("as ordered")
    if kind == "later" and task.attempt == 1:
        raise RetryLater(0.3)
    return 0.2 if kind == "slow" else 0.0


def run_sync(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker in threads."""
    from streamfleet.sync import Worker

    driver = driver_from_url(url)
    worker = Worker(driver, name=name, concurrency=CONCURRENCY, **options)

    def handle(task: Task) -> str:
        pause = behave(task, log)
        if pause:
            time.sleep(pause)  # the work that was ordered
        log.write("end", task.id, task.attempt)
        return task.id

    for queue in QUEUES:
        worker.handler(queue)(handle)
    signal.signal(signal.SIGTERM, lambda *_: worker.request_stop(DRAIN))
    with worker.running():
        ready(log, "sync", url, driver)
        worker.wait()


def run_asyncio(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker on asyncio."""
    from streamfleet.asyncio import Worker

    async def main() -> None:
        driver = driver_from_url(url, shell="asyncio")
        worker = Worker(driver, name=name, concurrency=CONCURRENCY, **options)

        async def handle(task: Task) -> str:
            pause = behave(task, log)
            if pause:
                await asyncio.sleep(pause)
            log.write("end", task.id, task.attempt)
            return task.id

        for queue in QUEUES:
            worker.handler(queue)(handle)
        async with worker.running():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.request_stop, DRAIN)
            ready(log, "asyncio", url, driver)
            await worker.wait()

    asyncio.run(main())


def run_trio(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker on trio."""
    import trio

    from streamfleet.trio import Worker

    async def main() -> None:
        driver = driver_from_url(url, shell="trio")
        worker = Worker(driver, name=name, concurrency=CONCURRENCY, **options)

        async def handle(task: Task) -> str:
            pause = behave(task, log)
            if pause:
                await trio.sleep(pause)
            log.write("end", task.id, task.attempt)
            return task.id

        for queue in QUEUES:
            worker.handler(queue)(handle)

        async def obey(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    worker.request_stop(DRAIN)

        async with trio.open_nursery() as nursery:
            async with worker.running():
                await nursery.start(obey)
                ready(log, "trio", url, driver)
                await worker.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)


SHELLS: dict[str, Callable[[str, str, LogFile, dict[str, Any]], None]] = {
    "sync": run_sync,
    "asyncio": run_asyncio,
    "trio": run_trio,
}


def main() -> int:
    """Run until told to stop; the exit code says whether the server refused."""
    shell, url, name, path, lease, client_timeout = sys.argv[1:]
    options: dict[str, Any] = {
        "lease": float(lease),
        "scan_interval": float(lease) / 4,
        "sweep_interval": float(lease),
        "poll_interval": 0.3,
        "block": 1.0,
        "max_deliveries": 100,
        "client_timeout": float(client_timeout),
    }
    log = LogFile(Path(path))
    return exit_code(lambda: SHELLS[shell](url, name, log, options), log)


if __name__ == "__main__":
    sys.exit(main())

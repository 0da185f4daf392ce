"""One worker process of a campaign: ``python -m campaign.worker_process SHELL URL NAME LOG LEASE``."""

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
from campaign.workload import QUEUES
from streamfleet import DoNotRetry, RetryLater, driver_from_url
from streamfleet.errors import ServerRefused

CONCURRENCY = 4
REFUSED = 3


def behave(task: Any, log: LogFile) -> float:
    """Do what the payload asks for. Returns for how long the handler is to take."""
    log.write("start", task.id, task.attempt, task.deliveries)
    order = json.loads(task.text)
    kind = order["do"]
    if kind == "crash" and task.deliveries == 1 and task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fail" or (kind == "fail once" and task.attempt == 1):
        raise ValueError("as ordered")
    if kind == "refuse":
        raise DoNotRetry("as ordered")
    if kind == "later" and task.attempt == 1:
        raise RetryLater(0.3)
    return 0.2 if kind == "slow" else 0.0


def run_sync(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker in threads."""
    from streamfleet.sync import Worker

    worker = Worker(driver_from_url(url), name=name, concurrency=CONCURRENCY, **options)

    def handle(task: Any) -> str:
        pause = behave(task, log)
        if pause:
            time.sleep(pause)  # the work that was ordered
        log.write("end", task.id)
        return task.id

    for queue in QUEUES:
        worker.handler(queue)(handle)
    signal.signal(signal.SIGTERM, lambda *_: worker.request_stop(5))
    worker.run()


def run_asyncio(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker on asyncio."""
    from streamfleet.asyncio import Worker

    async def main() -> None:
        worker = Worker(driver_from_url(url, shell="asyncio"), name=name, concurrency=CONCURRENCY, **options)

        async def handle(task: Any) -> str:
            pause = behave(task, log)
            if pause:
                await asyncio.sleep(pause)
            log.write("end", task.id)
            return task.id

        for queue in QUEUES:
            worker.handler(queue)(handle)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.request_stop, 5)
        await worker.run()

    asyncio.run(main())


def run_trio(url: str, name: str, log: LogFile, options: dict[str, Any]) -> None:
    """A worker on trio."""
    import trio

    from streamfleet.trio import Worker

    async def main() -> None:
        worker = Worker(driver_from_url(url, shell="trio"), name=name, concurrency=CONCURRENCY, **options)

        async def handle(task: Any) -> str:
            pause = behave(task, log)
            if pause:
                await trio.sleep(pause)
            log.write("end", task.id)
            return task.id

        for queue in QUEUES:
            worker.handler(queue)(handle)

        async def obey() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    worker.request_stop(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey)
            await worker.run()
            nursery.cancel_scope.cancel()

    trio.run(main)


SHELLS: dict[str, Callable[[str, str, LogFile, dict[str, Any]], None]] = {
    "sync": run_sync,
    "asyncio": run_asyncio,
    "trio": run_trio,
}


def main() -> int:
    """Run until told to stop; the exit code says whether the server refused."""
    shell, url, name, log, lease = sys.argv[1:]
    options: dict[str, Any] = {
        "lease": float(lease),
        "scan_interval": float(lease) / 4,
        "sweep_interval": float(lease),
        "poll_interval": 0.3,
        "block": 1.0,
        "max_deliveries": 100,
    }
    try:
        SHELLS[shell](url, name, LogFile(Path(log)), options)
    except ServerRefused as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A clock: a client enqueues the time each second, and a worker in the same process prints it.

python examples/ticker.py [TICKS [SECONDS]]
"""

import os
import sys
import time
from contextlib import closing, suppress
from datetime import datetime

from streamfleet import Task, driver_from_url
from streamfleet.sync import Client, Worker

driver = driver_from_url(os.environ.get("STREAMFLEET_URL", "embedded://"))
worker = Worker(driver, concurrency=1)


@worker.handler("ticker")
def show(task: Task) -> None:
    print(task.text, flush=True)


def tick(times: int = 1_000_000, every: float = 1.0) -> None:
    with closing(driver), worker.running(), Client(driver) as client:
        for _ in range(times):
            last = client.enqueue_tracked("ticker", f"The current time is: {datetime.now():%H:%M:%S}")
            time.sleep(every)
        last.wait(timeout=10)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        tick(*(parse(text) for parse, text in zip((int, float), sys.argv[1:], strict=False)))

"""A program that forks while its client is in use: ``python forking.py URL QUEUE``. Prints what became of both."""

from __future__ import annotations

import json
import os
import sys

from streamfleet import driver_from_url
from streamfleet.sync import Client

NUMBER = 20


def enqueue(client: Client, queue: str, who: str) -> None:
    """Enqueue a few, and wait until they are accepted."""
    for number in range(NUMBER):
        client.enqueue(queue, f"{who} {number}")
    client.flush(10)


def main() -> None:
    """Both go on with what was one client, at the same time."""
    url, queue = sys.argv[1:]
    client = Client(driver_from_url(url), [queue])
    enqueue(client, queue, "before")
    for number in range(NUMBER):  # still in the buffer, or on their way, when the process forks
        client.enqueue(queue, f"across {number}")
    before = client.id
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        enqueue(client, queue, "child")
        os.write(writing, json.dumps({"child": client.id, "buffered": client.buffered}).encode())
        os.close(writing)
        sys.exit(client.close())
    os.close(writing)
    enqueue(client, queue, "parent")
    told = b""
    while chunk := os.read(reading, 4096):
        told += chunk
    _, status = os.waitpid(child, 0)
    enqueue(client, queue, "after")  # the child's end has not closed the parent's connection
    report = json.loads(told or b"{}") | {"before": before, "parent": client.id, "status": status}
    report["unsent"] = client.close()
    report["counts"] = client.counts
    print(json.dumps(report))


if __name__ == "__main__":
    main()

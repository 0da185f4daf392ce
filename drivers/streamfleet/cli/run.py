"""``streamfleet run module:object``: work until told to stop."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from types import FrameType
from typing import Any

from streamfleet import driver_from_url
from streamfleet.cli.arguments import URL_VARIABLE, add_url, add_verbose, positive
from streamfleet.cli.loading import load_worker
from streamfleet.cli.logs import log_to_stderr
from streamfleet.cli.serving import AnyWorker, serve, shell_of
from streamfleet.identity import worker_name

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL = 0.5
"""Seconds within which a second signal is taken for an echo of the first."""
HURRIED = 1
"""Exit code after a second signal: running tasks were left behind, and others take them over."""


def add_to(commands: Any) -> None:
    """Add this command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run a worker",
        description="Run a worker until SIGTERM or SIGINT (Ctrl-C). It then takes no new tasks, gives back what "
        "has not started, and waits for what runs; a second signal ends it at once, and other workers take over "
        "after the lease. It starts, and stays up, without a server.",
    )
    parser.add_argument("target", metavar="module:object", help="a Worker, or a function that returns one")
    parser.add_argument(
        "-c", "--concurrency", type=positive, metavar="N", help="handlers at work at the same time"
    )
    parser.add_argument("--name", help="the worker's name, for people")
    add_url(parser)
    add_verbose(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Run it. Raises UsageError, MissingExtra, and a ServerRefused."""
    log_to_stderr(verbose=arguments.verbose)
    if arguments.url:
        os.environ[URL_VARIABLE] = arguments.url  # for modules that choose their driver by it
    worker = load_worker(arguments.target)
    _override(worker, arguments.url, arguments.name, arguments.concurrency)
    with _stopped_by_signals(worker) as stop:

        def started() -> None:
            _say(f"worker {worker.name} runs ({worker._driver.url}); Ctrl-C stops it")
            if stop.asked:  # before there was anything to stop
                worker.request_stop()

        serve(worker, started)
    counts = worker.counts
    _say(f"worker {worker.name} stopped in good order: {counts.get('completed', 0):,} tasks completed")
    return 0


def _override(worker: AnyWorker, url: str | None, name: str | None, concurrency: int | None) -> None:
    """What the command line says takes precedence over what the program says."""
    if url:
        shell = shell_of(worker)
        assert shell is not None, "load_worker gives workers only"
        worker._driver = driver_from_url(url, shell=shell)
    if name:
        worker.name = worker_name(name)
    if concurrency:
        worker._config = replace(worker._config, concurrency=concurrency)


class _Stop:
    """Whether, and when, a signal has asked for the end."""

    asked = False
    asked_at = 0.0

    def again(self, now: float) -> bool:
        """Is this another wish? Process managers and terminals often send one signal twice."""
        return self.asked and now - self.asked_at > SAME_SIGNAL


@contextmanager
def _stopped_by_signals(worker: AnyWorker) -> Iterator[_Stop]:
    stop = _Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.again(monotonic()):
            # Not sys.exit: a handler's thread that hangs would keep the process. Nothing is lost by it, for
            # what has not been settled stays in the server's pending entries list.
            os._exit(HURRIED)
        if stop.asked:
            return
        stop.asked, stop.asked_at = True, monotonic()
        name = signal.Signals(number).name
        os.write(2, f"streamfleet: {name}: finishing what runs; once more to leave at once\n".encode())
        worker.request_stop()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"streamfleet: {text}", file=sys.stderr, flush=True)

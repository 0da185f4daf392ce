"""An agent's process, from without."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Self

from streamfleet.bench.orders import Order, Report


class AgentFailed(Exception):
    """An agent ended without its report; what it said goes to stderr."""


class AgentProcess:
    """An agent, ready to begin. Use it as a context manager, so that it never stays behind."""

    def __init__(self, contender: str, role: str, order: Order) -> None:
        self._what = f"{contender} {role}"
        arguments = (contender, role, json.dumps(asdict(order)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamfleet.bench.agent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> Self:
        """Wait until it has prepared. Raises AgentFailed."""
        if self._line() != "ready\n":
            raise AgentFailed(f"{self._what}: not ready")
        return self

    def begin(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def report(self) -> Report:
        """Wait for its report. Raises AgentFailed."""
        line = self._line()
        if not line:
            raise AgentFailed(f"{self._what}: ended without a report")
        report: Report = json.loads(line)
        self._process.wait()
        return report

    def run(self) -> Report:
        """Let it begin, and wait for its report."""
        self.begin()
        return self.report()

    def _line(self) -> str:
        assert self._process.stdout is not None, "a pipe"
        return self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

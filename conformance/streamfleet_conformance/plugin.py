"""The pytest plugin of the suite. Not registered by itself: ``-p streamfleet_conformance.plugin``.

Options choose the cell of the matrix: ``--shell``, ``--driver``, ``--server`` and ``--harness``. A case is
reported as not supported only when the driver declares a capability as missing that the case needs; any other
skip is a failure. Cases that disturb their server are left out when it belongs to somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from streamfleet_conformance.actors import Spec
from streamfleet_conformance.backends import Backend
from streamfleet_conformance.harness import Harness, harness_for
from streamfleet_conformance.results import RESULTS, CaseResult, Outcome, Results
from streamfleet_conformance.scene import Scene
from streamfleet_conformance.shells import Running, Shell, shell_for
from streamfleet_core.connection import Capability
from streamfleet_core.errors import StreamfleetError, UsageError

MARKS = (
    "fault_row(*numbers): rows of the list of fault scenarios that the case shows",
    "needs(*capabilities): capabilities without which the case is not supported",
    "owned_server: the case disturbs its server",
    "in_threads: the case is about handlers that cannot be stopped",
)

CELL = pytest.StashKey["Cell"]()
ONE_IN = 4
"""So many cases of an async shell have one among them that runs its handlers in threads of the worker."""

NOT_SUPPORTED = pytest.StashKey[str]()


class Cell:
    """Shell, driver and server of this run."""

    def __init__(self, spec: Spec) -> None:
        self.harness: Harness = harness_for(spec.driver, spec.server, spec.harness)
        if spec.shell not in self.harness.shells:
            raise UsageError(f"{spec.driver or spec.harness} does not serve the {spec.shell} shell")
        self.shell: Shell = shell_for(spec.shell)
        self._spec = spec
        self._shared: Backend | None = None
        self._missing: frozenset[Capability] | None = None
        self._identity = ("", "")

    @property
    def shared(self) -> Backend:
        """The server that most cases share."""
        if self._shared is None:
            self._shared = self.harness.backend()
        return self._shared

    def running(self, item: pytest.Item) -> Running:
        """How handlers run in a case: the same each time, but not the same in every cell."""
        if self.shell.name == "sync" or item.get_closest_marker("in_threads"):
            return Running.THREAD
        spec = self._spec
        draw = crc32(" ".join((spec.shell, spec.driver, spec.harness, self.harness.server, item.name)).encode())
        return Running.AWAITED if draw % ONE_IN else Running.THREAD

    def scene(self, running: Running = Running.THREAD, *, own: bool = False, **options: Any) -> Scene:
        """A stage for one case, on the shared server or on one of its own."""
        shared = None if own or self.harness.in_process else self.shared
        backend = shared or self.harness.backend(**options)
        return Scene(self.harness, self.shell, backend, replace(self._spec, shared=shared), running)

    def missing(self) -> frozenset[Capability]:
        """What the driver declares as missing."""
        if self._missing is None:
            scene = self.scene()
            try:
                self._missing = scene.declared_missing()
                identity = scene.connect().identity
                self._identity = (identity.server, identity.version)
            finally:
                scene.close()
        return self._missing

    def results(self) -> Results:
        """An empty record for this cell."""
        spec, (server, version) = self._spec, self._identity
        driver = spec.driver if not spec.harness else spec.harness
        return Results(spec.shell, driver, self.harness.server, server, version)

    def close(self) -> None:
        """End what the cell has started."""
        self.shell.close()
        if self._shared is not None:
            self._shared.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that choose the cell."""
    group = parser.getgroup("streamfleet conformance")
    group.addoption("--shell", default="sync", help="sync, asyncio or trio")
    group.addoption("--driver", default="", help="one of ours: memory, fake, redis, valkey, trio")
    group.addoption("--server", default="", help="memory, fakeredis, a server of the catalogue, or a URL")
    group.addoption("--harness", default="", help="module:attribute of somebody else's harness")
    group.addoption("--results", default="", help="write the results to this file as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks, and make the cell."""
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
    option = config.getoption
    harness = option("--harness")
    driver = option("--driver") or ("" if harness else "memory")
    try:
        cell = Cell(Spec(option("--shell"), driver, option("--server"), harness))
        missing = cell.missing()
    except StreamfleetError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[CELL] = cell
    config.stash[RESULTS] = cell.results()
    config.stash[RESULTS].missing = sorted(capability.name for capability in missing)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the shared server."""
    cell = config.stash.get(CELL, None)
    if cell is not None:
        cell.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what the suite consists of, and leave out what would disturb somebody else's server."""
    names = "\n".join(sorted(map(_name, items)))
    config.stash[RESULTS].suite = sha256(names.encode()).hexdigest()[:16]
    if config.stash[CELL].harness.owned:
        return
    left_out = [item for item in items if item.get_closest_marker("owned_server")]
    items[:] = [item for item in items if not item.get_closest_marker("owned_server")]
    config.stash[RESULTS].left_out = len(left_out)
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A case whose needed capability is declared missing is not supported."""
    missing = item.config.stash[CELL].missing()
    for mark in item.iter_markers("needs"):
        lacking = [capability for capability in mark.args if capability in missing]
        if lacking:
            reason = "the driver declares as missing: " + "; ".join(c.value for c in lacking)
            item.stash[NOT_SUPPORTED] = reason
            pytest.skip(f"not supported: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip for any other reason into a failure, and keep the result."""
    report = yield
    if report.skipped and NOT_SUPPORTED not in item.stash:
        report.outcome = "failed"
        report.longrepr = f"skipped without a declared capability that is missing: {report.longrepr}"
    if report.failed:
        report.sections.append(("How handlers ran", item.config.stash[CELL].running(item).value))
    _keep(item, report)
    return report


def _keep(item: pytest.Item, report: pytest.TestReport) -> None:
    """A case counts once, with the worst that happened in its phases."""
    name = _name(item)
    results = item.config.stash[RESULTS]
    if report.failed:
        results.put(CaseResult(name, Outcome.FAILED, _rows(item), report.longreprtext))
    elif report.skipped:
        results.put(CaseResult(name, Outcome.NOT_SUPPORTED, _rows(item), item.stash[NOT_SUPPORTED]))
    elif report.when == "call":
        results.put(CaseResult(name, Outcome.PASSED, _rows(item)))


def _name(item: pytest.Item) -> str:
    return item.nodeid.rpartition("cases/")[2] or item.nodeid


def _rows(item: pytest.Item) -> list[int]:
    return sorted({number for mark in item.iter_markers("fault_row") for number in mark.args})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the results down."""
    path = session.config.getoption("--results")
    if path:
        results = session.config.stash[RESULTS]
        Path(path).write_text(json.dumps(results.as_json(), indent=1) + "\n", "utf-8")


def pytest_report_header(config: pytest.Config) -> str:
    """Which cell this is."""
    return config.stash[RESULTS].title


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A stage on the shared server, or on one of its own where the case is marked so."""
    own = request.node.get_closest_marker("owned_server")
    options = dict(own.kwargs) if own else {}
    cell = request.config.stash[CELL]
    made = cell.scene(cell.running(request.node), own=own is not None, **options)
    try:
        yield made
    finally:
        try:
            made.close()
        finally:
            if own:
                made.backend.stop()

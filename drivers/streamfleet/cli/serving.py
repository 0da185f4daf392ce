"""Run a worker of any shell, on the main thread, until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, Union, cast

from streamfleet.drivers import Shell
from streamfleet.sync import Worker as SyncWorker

if TYPE_CHECKING:
    from streamfleet.asyncio import Worker as AsyncioWorker
    from streamfleet.trio import Worker as TrioWorker

AnyWorker: TypeAlias = Union[SyncWorker, "AsyncioWorker", "TrioWorker"]

_SHELLS: dict[str, Shell] = {f"streamfleet.{shell}.worker": shell for shell in ("sync", "asyncio", "trio")}


def shell_of(value: object) -> Shell | None:
    """The shell whose worker this is; None when it is no worker.

    Told by the class's home, so that no event loop need be installed to find that it is not needed.
    """
    homes = (kind.__module__ for kind in type(value).__mro__ if kind.__name__ == "Worker")
    return next((_SHELLS[home] for home in homes if home in _SHELLS), None)


def serve(worker: AnyWorker, started: Callable[[], None]) -> None:
    """Work until somebody calls the worker's ``request_stop``. ``started`` is called once it works.

    Raises UsageError without handlers, and a ServerRefused when the server will not work with this worker.
    """
    shell = shell_of(worker)
    if shell == "sync":
        _serve_sync(cast("SyncWorker", worker), started)
    elif shell == "asyncio":
        import asyncio

        asyncio.run(_serve_async(cast("AsyncioWorker", worker), started))
    else:
        import trio

        trio.run(_serve_async, cast("TrioWorker", worker), started)


def _serve_sync(worker: SyncWorker, started: Callable[[], None]) -> None:
    worker.start()
    started()
    worker.wait()


async def _serve_async(worker: AsyncioWorker | TrioWorker, started: Callable[[], None]) -> None:
    async with worker.running():
        started()
        await worker.wait()

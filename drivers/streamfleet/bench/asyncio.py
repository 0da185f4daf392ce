"""The shell for asyncio as a contender."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from streamfleet.asyncio import Client, Worker
from streamfleet.bench.coroutines import Loop, agents
from streamfleet.bench.orders import Contender, Report


def _run(work: Callable[[], Awaitable[Report]]) -> Report:
    async def main() -> Report:
        return await work()

    return asyncio.run(main())


AGENTS: Contender = agents(Loop("asyncio", Client, Worker, _run, asyncio.sleep))

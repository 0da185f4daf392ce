"""The shell for trio as a contender."""

from __future__ import annotations

import trio

from streamfleet.bench.coroutines import Loop, agents
from streamfleet.bench.orders import Contender
from streamfleet.trio import Client, Worker

AGENTS: Contender = agents(Loop("trio", Client, Worker, trio.run, trio.sleep))

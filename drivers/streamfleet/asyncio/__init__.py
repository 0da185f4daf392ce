"""streamfleet for asyncio: `Client`, `Worker`, `Handle`."""

from streamfleet.asyncio.client import Client
from streamfleet.asyncio.handle import Handle
from streamfleet.asyncio.worker import Worker

__all__ = ["Client", "Handle", "Worker"]

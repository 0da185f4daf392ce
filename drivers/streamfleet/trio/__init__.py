"""streamfleet for trio: `Client`, `Worker`, `Handle`."""

from streamfleet.trio.client import Client
from streamfleet.trio.handle import Handle
from streamfleet.trio.worker import Worker

__all__ = ["Client", "Handle", "Worker"]

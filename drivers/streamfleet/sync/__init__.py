"""streamfleet for threads: `Client`, `Worker`, `Handle`."""

from streamfleet.sync.client import Client
from streamfleet.sync.handle import Handle
from streamfleet.sync.worker import Worker

__all__ = ["Client", "Handle", "Worker"]

"""A server within the process: `MemoryDriver`, and the model behind it, `ModelServer`."""

from streamfleet.memory.driver import MemoryDriver
from streamfleet.memory.model import ModelServer, Snapshot
from streamfleet.memory.session import Blocked, Session

__all__ = ["Blocked", "MemoryDriver", "ModelServer", "Session", "Snapshot"]

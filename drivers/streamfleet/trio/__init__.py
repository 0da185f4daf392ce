"""streamfleet for trio: `Client`, `Worker`, `Handle`. Importing it raises MissingExtra without trio."""

from streamfleet.extras import missing_extra

try:
    import trio  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_extra("the trio shell", "trio") from error

from streamfleet.trio.client import Client
from streamfleet.trio.handle import Handle
from streamfleet.trio.worker import Worker

__all__ = ["Client", "Handle", "Worker"]

"""The servers that cases run against: launched for them, somebody else's, or inside this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streamfleet.embedded import EmbeddedServer
from streamfleet_conformance.servers import launch
from streamfleet_core.urls import parse_url


class Backend(Protocol):
    """One server. ``owned``: it was started for the suite, which may do to it what it likes."""

    url: str
    owned: bool
    address: tuple[str, int] | None
    """Host and port for the fault proxy; None when there is no plain TCP to stand in the way of."""

    def kill(self) -> None:
        """End it without warning. Connections break, new ones are refused."""

    def restart(self) -> None:
        """Start it again, with whatever data it keeps."""

    def suspend(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""

    def resume(self) -> None:
        """End `suspend`."""

    def stop(self) -> None:
        """Release it for good."""


class LaunchedBackend:
    """A server of the catalogue, as a process of ours."""

    owned = True

    def __init__(self, name: str, *, durable: bool = False, maxmemory: int | None = None) -> None:
        """``durable``: keeps each write through a SIGKILL. Raises what `servers.launch` raises."""
        self._server: EmbeddedServer = launch(
            name, appendonly=durable, maxmemory=maxmemory, extra=("--appendfsync", "always") if durable else ()
        )
        self.url = self._server.url
        self.address: tuple[str, int] | None = ("127.0.0.1", self._server.port)

    def kill(self) -> None:
        """See `Backend.kill`."""
        self._server.kill()

    def restart(self) -> None:
        """See `Backend.restart`."""
        self._server.restart()

    def suspend(self) -> None:
        """See `Backend.suspend`."""
        self._server.suspend()

    def resume(self) -> None:
        """See `Backend.resume`."""
        self._server.resume()

    def stop(self) -> None:
        """See `Backend.stop`."""
        self._server.stop()


class NotOurs(RuntimeError):
    """A case without the mark `owned` tried to disturb somebody else's server: a fault of the case."""


class ForeignBackend:
    """A server at a URL. The cases use keys of their own in it, and remove them."""

    owned = False

    def __init__(self, url: str) -> None:
        """Raises InvalidURL."""
        self.url = url
        parts = parse_url(url)
        plain = not parts.tls and bool(parts.host)
        self.address: tuple[str, int] | None = (parts.host, parts.port) if plain else None

    def kill(self) -> None:
        """Raises NotOurs, as do the others."""
        raise NotOurs(f"{self.url} is not ours to disturb")

    restart = suspend = resume = kill

    def stop(self) -> None:
        """It stays for its owner."""


@dataclass(slots=True)
class LocalBackend:
    """A server inside this process. It cannot be frozen: that is told by Capability.OUT_OF_PROCESS."""

    url: str
    on_kill: Callable[[], None]
    on_restart: Callable[[], None]
    on_block: Callable[[], None]
    """Cut all connections and refuse new ones until ``on_restart``, without losing anything."""
    owned: bool = True
    address: tuple[str, int] | None = None

    def kill(self) -> None:
        """See `Backend.kill`."""
        self.on_kill()

    def restart(self) -> None:
        """See `Backend.restart`."""
        self.on_restart()

    def suspend(self) -> None:
        """Raises NotOurs: this process would freeze with it."""
        raise NotOurs(f"{self.url} runs in this process")

    resume = suspend

    def block(self) -> None:
        """Put it out of reach, with its data."""
        self.on_block()

    def stop(self) -> None:
        """It goes with its last user."""

"""From a URL to a driver: `driver_from_url`."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, get_args, overload

from streamfleet.extras import missing_extra
from streamfleet_core.connection import AsyncDriver, Driver
from streamfleet_core.errors import UsageError, WrongDriver
from streamfleet_core.urls import ServerURL, parse_url

Shell: TypeAlias = Literal["sync", "asyncio", "trio"]

ENTRY_POINTS = "streamfleet.drivers"
"""The entry point group of third parties: name = the URL's scheme, object = a callable that takes the URL."""

SHELLS: tuple[Shell, ...] = get_args(Shell)
_CONNECT = {"sync": "connect", "asyncio": "connect_async", "trio": "connect_async"}

OWN_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix", "memory", "embedded")


@overload
def driver_from_url(url: str, *, shell: Literal["sync"] = "sync") -> Driver: ...
@overload
def driver_from_url(url: str, *, shell: Literal["asyncio", "trio"]) -> AsyncDriver: ...
def driver_from_url(url: str, *, shell: Shell = "sync") -> Driver | AsyncDriver:
    """The driver for a URL and a shell.

    ``redis``, ``rediss``, ``valkey``, ``valkeys`` and ``unix`` use redis-py or valkey-py, whichever fits the
    scheme better and is installed; under trio the TrioDriver. ``memory`` is the model server in this process.
    ``embedded`` starts a server, which ends with the driver's ``close()``. Schemes of third parties are found
    by their entry points.

    ``shell``: the name of the package that the driver is for: ``sync`` (threads), ``asyncio`` or ``trio``.

    Raises InvalidURL, UsageError for another shell, WrongDriver when the scheme does not serve the shell,
    MissingExtra when what it needs is not installed, and for ``embedded`` EmbeddedServerFailed.
    """
    if shell not in SHELLS:
        raise UsageError(f"unknown shell {shell!r:.40}: it is 'sync' (for threads), 'asyncio' or 'trio'")
    scheme = url.partition("://")[0] if isinstance(url, str) else ""
    foreign = _third_party(scheme)
    driver = foreign(url) if foreign is not None else _own(parse_url(url), shell)
    _check_pair(driver, scheme, shell)
    return driver


def _check_pair(driver: Any, scheme: str, shell: Shell) -> None:
    served = [name for name in SHELLS if hasattr(driver, _CONNECT[name])]
    if shell in served:
        return
    what = f"{type(driver).__name__}, the driver for {scheme}://, does not serve the {shell} shell"
    why = f"it has no {_CONNECT[shell]}()"
    mend = f"use it with {' or '.join(served)}, or" if served else "use"
    raise WrongDriver(f"{what}: {why}; {mend} another URL, such as redis://localhost:6379")


def _third_party(scheme: str) -> Any:
    """The factory that an installed package registers for a scheme; our own schemes cannot be taken over."""
    if scheme in OWN_SCHEMES:
        return None
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        return entry.load()
    return None


def _own(server: ServerURL, shell: Shell) -> Driver | AsyncDriver:
    if server.scheme == "memory":
        from streamfleet.memory import MemoryDriver

        return MemoryDriver(server.host)
    if server.scheme == "embedded":
        from streamfleet.embedded_driver import EmbeddedDriver

        return EmbeddedDriver(server.path or None, lambda url: _over_a_socket(parse_url(url), shell))
    return _over_a_socket(server, shell)


def _over_a_socket(server: ServerURL, shell: Shell) -> Driver | AsyncDriver:
    if shell == "trio":
        from streamfleet.trio_driver import TrioDriver

        return TrioDriver(server)
    libraries = ("valkey", "redis") if server.scheme.startswith("valkey") else ("redis", "valkey")
    for library in libraries:
        if find_spec(library) is None:
            continue
        if library == "redis":
            from streamfleet.redis import RedisDriver

            return RedisDriver(server)
        from streamfleet.valkey import ValkeyDriver

        return ValkeyDriver(server)
    raise missing_extra(f"{server.scheme}://", libraries[0])

"""What the drivers over sockets make of a URL and of the arguments that override it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from streamfleet.handshake import Greeting
from streamfleet.tls import client_context
from streamfleet_core.errors import InvalidURL, UsageError
from streamfleet_core.urls import ServerURL, parse_url

CONNECT_TIMEOUT = 5.0
"""Seconds, unless told."""
MAX_CONNECT_TIMEOUT = 86400
SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect to and how."""

    server: ServerURL
    greeting: Greeting
    """Its credentials are those of the URL and the arguments."""
    tls: ssl.SSLContext | None
    connect_timeout: float
    """Seconds."""

    @property
    def tls_name(self) -> str:
        """What a certificate is issued for: the host without an address's zone, or the dot that ends a name."""
        return self.server.host.partition("%")[0].removesuffix(".")


def settings_for(
    url: str | ServerURL,
    driver: str,
    *,
    username: str | None,
    password: str | None,
    db: int | None,
    ssl_context: ssl.SSLContext | None,
    client_name: str | None,
    connect_timeout: float | None,
) -> Settings:
    """Settings of a driver class; arguments take precedence over the URL. Raises InvalidURL, UsageError."""
    server = parse_url(url) if isinstance(url, str) else url
    if server.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise InvalidURL(f"{driver} takes {known}; for {server.scheme}:// use driver_from_url")
    if ssl_context is not None and server.scheme == "unix":
        raise UsageError("ssl_context is for TCP: a Unix socket has no TLS")
    name = client_name or server.options.get("client_name", "")
    if not all("!" <= character <= "~" for character in name):
        raise UsageError(f"client_name {name!r}: only printable ASCII without spaces is possible")
    if connect_timeout is None:
        connect_timeout = float(server.options.get("timeout", CONNECT_TIMEOUT))
    elif not isinstance(connect_timeout, int | float) or not 0 < connect_timeout <= MAX_CONNECT_TIMEOUT:
        raise UsageError(f"connect_timeout is in seconds, above 0 and up to a day; got {connect_timeout!r:.40}")
    greeting = Greeting(
        server.safe(),
        _credentials(
            server.username if username is None else username,
            server.password if password is None else password,
        ),
        server.db if db is None else db,
        name,
    )
    tls = client_context(server.options) if ssl_context is None and server.tls else ssl_context
    return Settings(server, greeting, tls, float(connect_timeout))


def _credentials(username: str | None, password: str | None) -> tuple[str, ...]:
    """What AUTH takes: nothing, a password, or a user's name and password."""
    if username:
        return (username, password or "")
    return (password,) if password else ()

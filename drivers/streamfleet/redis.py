"""The driver on redis-py, for threads and asyncio: ``pip install 'streamfleet[redis]'``."""

from __future__ import annotations

import ssl

from streamfleet.credentials import CredentialProvider
from streamfleet.library import Library, LibraryDriver
from streamfleet.resp import Codec
from streamfleet_core.urls import ServerURL


class RedisDriver(LibraryDriver):
    """Connects by redis-py to a Redis or Valkey server.

    ``url``: ``redis://``, ``rediss://`` (TLS), ``unix://``, and ``valkey(s)://``. Arguments take precedence
    over the URL. ``credential_provider``: one of redis-py's, asked at each connection, in a thread
    unless it has a coroutine of its own for asyncio. ``ssl_context``: asks for TLS, and stands instead of the
    URL's ``ssl_`` options; not for ``unix://``. ``connect_timeout``: the most seconds that a connect may take,
    whatever its caller allows, above 0 and up to a day; 5 unless told, here or as the URL's ``timeout``.
    ``codec``: a parser other than the fastest installed.

    Raises MissingExtra without redis-py, InvalidURL, and UsageError for arguments that are impossible or
    exclude each other.
    """

    name = "redis"
    library = Library("redis", "RedisError", "redis_connect_func", "hiredis")

    def __init__(
        self,
        url: str | ServerURL = "redis://localhost:6379",
        *,
        username: str | None = None,
        password: str | None = None,
        credential_provider: CredentialProvider | None = None,
        db: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        client_name: str | None = None,
        connect_timeout: float | None = None,
        codec: Codec | None = None,
    ) -> None:
        super().__init__(
            url,
            username=username,
            password=password,
            credential_provider=credential_provider,
            db=db,
            ssl_context=ssl_context,
            client_name=client_name,
            connect_timeout=connect_timeout,
            codec=codec,
        )

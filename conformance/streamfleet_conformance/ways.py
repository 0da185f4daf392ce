"""Ways from a client or worker to the server, which a case can close."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamfleet_conformance.backends import Backend, LocalBackend
from streamfleet_conformance.proxy import FaultProxy


class Way:
    """One way to the server. Outside this process it leads through a fault proxy of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._proxy: FaultProxy | None = None
        self.url = backend.url
        if backend.address is not None:
            host, port = backend.address
            self._proxy = FaultProxy(port, upstream_host=host)
            self.url = backend.url.replace(f"{host}:{port}", f"127.0.0.1:{self._proxy.port}")

    @property
    def proxy(self) -> FaultProxy:
        """The proxy, for faults of single requests. Only for cases that need OUT_OF_PROCESS."""
        assert self._proxy is not None, "no proxy stands before a server inside this process"
        return self._proxy

    def block(self) -> None:
        """Put the server out of reach: connections break, and new ones fail."""
        if self._proxy is not None:
            self._proxy.refuse()
        else:
            assert isinstance(self._backend, LocalBackend), f"no way to stand in before {self._backend.url}"
            self._backend.block()

    def open(self) -> None:
        """End `block`."""
        if self._proxy is not None:
            self._proxy.accept()
        else:
            self._backend.restart()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The server is out of reach by this way while the block runs."""
        self.block()
        try:
            yield
        finally:
            self.open()

    def restore(self) -> None:
        """Let everything pass that passed at first."""
        if self._proxy is not None:
            self._proxy.calm()
            self._proxy.heal()
            self._proxy.accept()

    def close(self) -> None:
        """End the proxy."""
        if self._proxy is not None:
            self._proxy.close()

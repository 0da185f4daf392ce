"""Who did what, when: kept for people on demand, hashed on demand, else dropped."""

from __future__ import annotations

from hashlib import blake2b

from .engine import Engine


class Trace:
    """The story of a world. ``keep``: keep its lines; ``digest``: a hash of all that happened."""

    def __init__(self, engine: Engine, *, keep: bool = False, hashed: bool = False) -> None:
        self._engine = engine
        self.lines: list[str] | None = [] if keep else None
        self._hash = blake2b(digest_size=16) if hashed else None
        self.quiet = not keep and not hashed

    def note(self, who: str, what: str) -> None:
        """Something happened."""
        if self.quiet:
            return
        line = f"{self._engine.now:10.4f}  {who:<16} {what}"
        if self.lines is not None:
            self.lines.append(line)
        if self._hash is not None:
            self._hash.update(line.encode() + b"\n")

    @property
    def digest(self) -> str:
        """The hash of all lines so far."""
        return self._hash.hexdigest() if self._hash is not None else ""

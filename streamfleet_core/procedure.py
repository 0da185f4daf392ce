"""Multi-step protocols on one connection, written down as one would tell them.

A procedure yields the commands of its next exchange and is sent an `Answer`. It holds no state that matters:
when the connection breaks it is closed, and the chore begins anew.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.replies import ErrorKind, abort_cause, classify

if TYPE_CHECKING:
    from streamfleet_core.link import Link


@dataclass(slots=True)
class Answer:
    """The replies to one exchange, sent and received at these times (monotonic seconds)."""

    replies: list[Reply]
    sent: float
    now: float


Steps: TypeAlias = Generator[list[Command], Answer, None]


def trouble(link: Link, error: ServerError, command: Command, now: float) -> None:
    """An error reply that the procedure has no answer to."""
    if classify(error) is not ErrorKind.NO_GROUP:  # which the reader heals
        link.trouble(error, command, now)


def first_error(answer: Answer, commands: list[Command]) -> tuple[ServerError, Command] | None:
    """The first error among the replies, and what was answered with it."""
    for command, reply in zip(commands, answer.replies, strict=True):
        if isinstance(reply, ServerError):
            return reply, command
    return None


def transaction(commands: list[Command]) -> list[Command]:
    """MULTI, the commands, EXEC."""
    return [("MULTI",), *commands, ("EXEC",)]


TRIAL: tuple[Command, ...] = (("MULTI",), ("EXEC",))
"""Tried before a connection holds transactions: to whom MULTI is refused, their commands would be done singly."""


def committed(answer: Answer, commands: list[Command], link: Link) -> list[Reply] | None:
    """The results of a `transaction` that was the last part of the exchange; None when it was not applied."""
    result = answer.replies[-1]
    if isinstance(result, list):
        return result
    if isinstance(result, ServerError):
        for command, reply in zip(reversed(commands[:-1]), reversed(answer.replies[:-1]), strict=False):
            if isinstance(reply, ServerError) and classify(reply) is not ErrorKind.ABORTED:
                trouble(link, reply, command, answer.now)
                return None
        trouble(link, abort_cause(result) or result, ("EXEC",), answer.now)
    return None

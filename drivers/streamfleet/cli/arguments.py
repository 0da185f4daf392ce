"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import NamedTuple

URL_VARIABLE = "STREAMFLEET_URL"
DEFAULT_URL = "redis://localhost:6379"


class Source(NamedTuple):
    """A server's URL, and where it came from."""

    url: str
    origin: str


def add_url(parser: argparse.ArgumentParser) -> None:
    """``--url``."""
    parser.add_argument("--url", metavar="URL", help=f"the server (default: ${URL_VARIABLE}, else {DEFAULT_URL})")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """``-v``."""
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")


def server_url(given: str | None, environment: Mapping[str, str] = os.environ) -> Source:
    """The server's URL: the one given, else the environment's, else the default."""
    if given:
        return Source(given, "--url")
    if environment.get(URL_VARIABLE):
        return Source(environment[URL_VARIABLE], f"${URL_VARIABLE}")
    return Source(DEFAULT_URL, "the default")


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


positive.__name__ = "whole number from 1 on"  # argparse names the type in its message

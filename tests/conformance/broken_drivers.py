"""Harnesses of drivers that break the contract, each in one way. The suite must fail every one of them."""

import random
import threading
from dataclasses import replace

from streamfleet.memory import MemoryDriver
from streamfleet.redis import RedisDriver
from streamfleet_conformance.harness import Harness, MemoryHarness
from streamfleet_core.connection import Capability, ServerError
from streamfleet_core.errors import NotSent, OutcomeUnknown


class Wrapped:
    """A connection that passes everything on."""

    def __init__(self, inner, driver):
        self.inner = inner
        self.driver = driver
        self.identity = inner.identity

    def exchange(self, commands, timeout):
        return self.inner.exchange(commands, timeout)

    def interrupt(self):
        self.inner.interrupt()

    def close(self):
        self.inner.close()


class Driver:
    """A driver on another, whose connections are wrapped."""

    name = "broken"

    def __init__(self, inner, wrapper=Wrapped):
        self.inner = inner
        self.url = inner.url
        self.missing = inner.missing
        self.wrapper = wrapper

    def connect(self, timeout):
        return self.wrapper(self.inner.connect(timeout), self)

    def close(self):
        self.inner.close()


def on_memory(wrapper):
    """A harness class whose driver wraps MemoryDriver's connections."""

    class Broken(MemoryHarness):
        def driver(self, url):
            return Driver(MemoryDriver(url.removeprefix("memory://")), wrapper)

    return Broken


def on_redis(wrapper):
    """A harness class whose driver wraps RedisDriver's connections."""

    class Broken(Harness):
        def driver(self, url):
            return Driver(RedisDriver(url), wrapper)

    return Broken


class Retries(Wrapped):
    def exchange(self, commands, timeout):
        try:
            return self.inner.exchange(commands, timeout)
        except OutcomeUnknown:
            self.inner = self.driver.inner.connect(timeout)
            return self.inner.exchange(commands, timeout)


class Reconnects(Wrapped):
    def exchange(self, commands, timeout):
        try:
            return self.inner.exchange(commands, timeout)
        except NotSent:
            self.inner = self.driver.inner.connect(timeout)
            return self.inner.exchange(commands, timeout)


class SaysNotSent(Wrapped):
    def exchange(self, commands, timeout):
        try:
            return self.inner.exchange(commands, timeout)
        except OutcomeUnknown as error:
            raise NotSent(str(error)) from error


class TakesLossForConflict(Wrapped):
    def exchange(self, commands, timeout):
        try:
            return self.inner.exchange(commands, timeout)
        except OutcomeUnknown:
            if ("EXEC",) in commands:
                return [None] * len(commands)
            raise


class Reorders(Wrapped):
    def exchange(self, commands, timeout):
        replies = self.inner.exchange(commands, timeout)
        random.Random(1).shuffle(replies)
        return replies


class Raises(Wrapped):
    def exchange(self, commands, timeout):
        replies = self.inner.exchange(commands, timeout)
        for reply in replies:
            if isinstance(reply, ServerError):
                raise RuntimeError(reply.message)
        return replies


class LosesCodes(Wrapped):
    def exchange(self, commands, timeout):
        replies = self.inner.exchange(commands, timeout)
        return [ServerError("ERR failed") if isinstance(reply, ServerError) else reply for reply in replies]


class Decodes(Wrapped):
    def exchange(self, commands, timeout):
        def clean(reply):
            if isinstance(reply, list):
                return [clean(item) for item in reply]
            return reply.decode("utf-8", "replace").encode() if isinstance(reply, bytes) else reply

        return clean(self.inner.exchange(commands, timeout))


class IgnoresInterrupts(Wrapped):
    def interrupt(self):
        return


class SharesOneSession(Wrapped):
    sessions = {}  # noqa: RUF012
    lock = threading.Lock()

    def __init__(self, inner, driver):
        super().__init__(self.sessions.setdefault(driver.url, inner), driver)

    def exchange(self, commands, timeout):
        with self.lock:
            return self.inner.exchange(commands, timeout)

    def close(self):
        return


RetryingDriver = on_redis(Retries)
ReconnectingDriver = on_memory(Reconnects)
NotSentDriver = on_redis(SaysNotSent)
ConflictDriver = on_redis(TakesLossForConflict)
ReorderingDriver = on_memory(Reorders)
RaisingDriver = on_memory(Raises)
CodelessDriver = on_memory(LosesCodes)
DecodingDriver = on_memory(Decodes)
DeafDriver = on_memory(IgnoresInterrupts)
OneSessionDriver = on_memory(SharesOneSession)


class Boasting(Wrapped):
    def __init__(self, inner, driver):
        super().__init__(inner, driver)
        self.identity = replace(inner.identity, missing=driver.missing)


class BoastingDriver(MemoryHarness):
    """Declares less than it lacks."""

    def driver(self, url):
        driver = Driver(MemoryDriver(url.removeprefix("memory://")), Boasting)
        driver.missing = driver.missing - {Capability.XACKDEL}
        return driver


class ModestDriver(MemoryHarness):
    """Declares more than it lacks."""

    def driver(self, url):
        driver = Driver(MemoryDriver(url.removeprefix("memory://")))
        driver.missing = driver.missing | {Capability.CLIENT_UNBLOCK}
        return driver


class HonestDriver(MemoryHarness):
    """Breaks nothing: a third party's harness as it should be."""

    def driver(self, url):
        return Driver(MemoryDriver(url.removeprefix("memory://")))

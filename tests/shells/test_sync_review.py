"""Defects of the shell for threads that a review has found."""

import logging
import threading

import pytest

from streamfleet.errors import AuthenticationFailed, Closed, NotSent
from streamfleet.sync import Client

WAIT = 20


class Gate:
    """A driver whose connections wait for the test, and then fail."""

    name = "gate"
    url = "gate://"
    missing = frozenset()

    def __init__(self, error):
        self.error = error
        self.opened = threading.Event()

    def connect(self, timeout):
        if not self.opened.wait(timeout):
            raise NotSent("nobody listens")
        raise self.error

    def close(self):
        """Nothing is held."""


class Elsewhere(threading.Thread):
    """A call in another thread, and what comes of it."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call = call
        self.error = None
        self.start()

    def run(self):
        try:
            self.call()
        except Exception as error:
            self.error = error

    def outcome(self):
        self.join(WAIT)
        assert not self.is_alive(), "it hangs"
        return self.error


@pytest.mark.parametrize("call", ["wait", "accepted"])
def test_who_waits_for_a_task_is_told_when_the_server_refuses(call, eventually):
    """Only those who asked afterwards were told; the others waited for ever."""
    driver = Gate(AuthenticationFailed("wrong password"))
    client = Client(driver)
    handle = client.enqueue_tracked("q", "x")
    waiting = Elsewhere(getattr(handle, call))
    eventually(lambda: handle._submission.waiter)
    driver.opened.set()
    assert isinstance(waiting.outcome(), AuthenticationFailed)
    client.close()


@pytest.mark.parametrize("tracked", [True, False])
def test_who_waits_for_a_task_is_told_when_the_client_is_closed(tracked, eventually):
    driver = Gate(NotSent("nobody"))
    client = Client(driver)
    handle = client.enqueue_tracked("q", "x") if tracked else client.enqueue("q", "x")
    waiting = Elsewhere(handle.accepted)
    eventually(lambda: handle._submission.waiter)
    driver.opened.set()
    client.close(0)
    assert waiting.outcome() is not None


def test_who_flushes_without_end_is_told_that_the_client_was_closed(eventually):
    """All was said to be accepted, although it had been given up."""
    driver = Gate(NotSent("nobody"))
    client = Client(driver)
    client.enqueue("q", "x")
    waiting = Elsewhere(client.flush)
    eventually(lambda: client._waiting)
    driver.opened.set()
    assert client.close(0) == 1
    assert isinstance(waiting.outcome(), Closed)
    with pytest.raises(Closed, match="1 tasks not sent"):
        client.flush()


def test_a_log_handler_may_enqueue():
    """It waited for the lock that its own thread held."""
    done = threading.Event()

    class Ship(logging.Handler):
        def emit(self, record):
            client.enqueue("logs", record.getMessage())
            done.set()

    driver = Gate(NotSent("nobody"))
    driver.opened.set()
    client = Client(driver)
    ship = Ship()
    logging.getLogger("streamfleet").addHandler(ship)
    try:
        client.enqueue("q", "x")
        assert done.wait(WAIT)
    finally:
        logging.getLogger("streamfleet").removeHandler(ship)
    assert Elsewhere(lambda: client.close(0)).outcome() is None

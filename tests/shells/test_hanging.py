"""Handlers in threads that do not return after they were given up: told alike by all three shells."""

import asyncio
import logging
import threading

import pytest
import trio

import streamfleet.asyncio.run
import streamfleet.sync
import streamfleet.trio.run
from streamfleet import TaskFailed
from streamfleet_core.events import EventKind

WAIT = 20


class Listener(logging.Handler):
    """Keeps what is told of handlers that hang."""

    def __init__(self):
        super().__init__()
        self.told = []

    def emit(self, record):
        event = record.streamfleet
        if event.kind is EventKind.HANDLERS_HANG:
            self.told.append((record.levelname, record.getMessage(), event.data))


@pytest.fixture
def told():
    listener = Listener()
    logging.getLogger("streamfleet").addHandler(listener)
    yield listener.told
    logging.getLogger("streamfleet").removeHandler(listener)


def work_in_threads(worker, scenario):
    with worker.running():
        scenario(worker)


def work_in_asyncio(worker, scenario):
    async def main():
        async with worker.running():
            await asyncio.to_thread(scenario, worker)

    asyncio.run(main())


def work_in_trio(worker, scenario):
    async def main():
        async with worker.running():
            await trio.to_thread.run_sync(scenario, worker)

    trio.run(main)


WORLDS = {
    "sync": (streamfleet.sync.Worker, work_in_threads, {}),
    "asyncio": (streamfleet.asyncio.Worker, work_in_asyncio, {"threads": True}),
    "trio": (streamfleet.trio.Worker, work_in_trio, {"threads": True}),
}
WORLD = pytest.mark.parametrize(("kind", "work", "in_threads"), WORLDS.values(), ids=WORLDS)


@WORLD
def test_handlers_that_hang_cost_places_from_a_number_on_which_is_told(
    kind, work, in_threads, driver, told, eventually
):
    """The shells counted them differently; one told of them when others began."""
    rounds = {"first": threading.Event(), "second": threading.Event()}
    worker = kind(driver, name="w", concurrency=1)

    @worker.handler("q", timeout=0.02, **in_threads)
    def handle(task):
        assert rounds[task.text].wait(WAIT)

    def scenario(worker):
        with streamfleet.sync.Client(driver) as client:
            for number, (text, release) in enumerate(rounds.items()):
                for hanging in (1, 2, 3):
                    with pytest.raises(TaskFailed, match="timeout"):
                        client.enqueue_tracked("q", text, max_retries=0).wait(WAIT)
                    assert len(told) == number or hanging == 3
                eventually(lambda so_far=number + 1: len(told) == so_far)
                release.set()
                eventually(lambda late=3 * number + 3: worker.counts.get("late") == late)

    try:
        work(worker, scenario)
    finally:
        for release in rounds.values():
            release.set()
    text = "w: 3 handlers hang after they were given up; no more threads are added for them"
    assert told == [("ERROR", text, {"handlers": 3})] * 2


@WORLD
def test_a_handler_that_hangs_after_others_have_taken_its_task_over_gives_its_place_up(
    kind, work, in_threads, driver, settle_elsewhere
):
    """Where it had no timeout, it kept its place in one of the shells."""
    started, release = threading.Event(), threading.Event()
    worker = kind(driver, name="w", concurrency=1, lease=0.4)

    @worker.handler("q", **in_threads)
    def handle(task):
        if task.text == "lost":
            started.set()
            assert release.wait(WAIT)
        return task.text

    def scenario(worker):
        with streamfleet.sync.Client(driver) as client:
            client.enqueue("q", "lost")
            assert started.wait(WAIT)
            settle_elsewhere()
            assert client.enqueue_tracked("q", "next").wait(WAIT) == b"next"
            release.set()

    try:
        work(worker, scenario)
    finally:
        release.set()


@WORLD
def test_a_worker_that_has_lost_a_place_ends_all_the_same(
    kind, work, in_threads, driver, told, eventually, monkeypatch
):
    """One shell asked again while it stopped, was told as before that too many hang, and waited for it."""
    for shell in (streamfleet.asyncio.run, streamfleet.trio.run):
        monkeypatch.setattr(shell, "HANDLER_GRACE", 0.05)
    release, working = threading.Event(), threading.Event()
    worker = kind(driver, name="w", concurrency=1, drain=0.0)

    @worker.handler("q", timeout=0.02, **in_threads)
    def handle(task):
        assert release.wait(WAIT)

    def scenario(worker):
        with streamfleet.sync.Client(driver) as client:
            for _ in range(3):
                client.enqueue("q", "x", max_retries=0)
            eventually(lambda: len(told) == 1)
        working.set()

    ended = threading.Thread(target=work, args=(worker, scenario), daemon=True)
    try:
        ended.start()
        assert working.wait(WAIT)
        ended.join(WAIT / 2)
        assert not ended.is_alive(), "it waits for a handler that hangs"
    finally:
        release.set()
        ended.join(WAIT)

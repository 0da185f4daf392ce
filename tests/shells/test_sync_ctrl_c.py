"""Ctrl-C in the main thread, in the midst of a call of the client for threads."""

import linecache
import signal
import sys
import threading
import time

import pytest

from streamfleet import Status, TaskCancelled
from streamfleet.sync import Client, loops
from streamfleet_core.link import Role

WAIT = 20


def takes_a_lock_again(thread):
    """Is it at the end of a wait on a condition, whose lock another thread has?"""
    frame = sys._current_frames()[thread.ident]
    return "_acquire_restore" in frame.f_code.co_name + linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def test_ctrl_c_while_a_wait_takes_its_lock_again_leaves_the_lock_to_who_has_it(driver):
    """It was released under the thread that had it, which died of that in the middle of its work."""
    main, pressed, failures = threading.main_thread(), threading.Event(), []

    def on_ctrl_c(number, frame):
        pressed.set()
        raise KeyboardInterrupt

    def press():
        deadline = time.monotonic() + WAIT
        try:
            with ours._loops.lock:
                ours._changed.notify_all()
                while not takes_a_lock_again(main):
                    assert time.monotonic() < deadline
                signal.pthread_kill(main.ident, signal.SIGINT)
                pressed.wait(0.1)  # in vain, unless the lock can be wrested from its owner
        except BaseException as error:
            failures.append(error)

    def done():
        if not thread.ident:
            thread.start()  # it gets the lock while this one waits
        return False

    driver.make_unavailable()
    ours = Client(driver)
    ours.enqueue("q", "x")
    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        with ours._loops.lock, pytest.raises(KeyboardInterrupt):
            ours._wait_until(done, time.monotonic() + WAIT)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join(WAIT)
    assert failures == []
    driver.make_available()
    assert ours.close() == 0


def test_ctrl_c_right_after_a_wait_has_given_its_lock_up_comes_out_as_it_is(driver):
    """The lock was not taken again: what came out was an error about that."""
    driver.make_unavailable()
    ours = Client(driver)
    handle = ours.enqueue_tracked("q", "x")
    with ours._loops.lock:
        conditions = ours._changed, ours._waiter_of(handle._submission)
    for condition, call in zip(conditions, (ours.flush, handle.wait), strict=True):

        def give_up(condition=condition, release=condition._release_save):
            release()
            raise KeyboardInterrupt

        condition._release_save = give_up
        with pytest.raises(KeyboardInterrupt):
            call(WAIT)
        condition._release_save = ours._loops.lock._release_save
    driver.make_available()
    assert ours.close() == 0


class CtrlCOnce:
    """Comes in place of the main thread's first call. Counts the calls after that."""

    def __init__(self, call):
        self.call, self.came, self.calls = call, False, 0

    def __call__(self, *arguments):
        if not self.came and threading.current_thread() is threading.main_thread():
            self.came = True
            raise KeyboardInterrupt
        self.calls += self.came
        return self.call(*arguments)


def test_ctrl_c_while_a_link_is_started_leaves_it_to_the_next_call(driver, monkeypatch):
    """It was never started: nothing was sent any more."""
    monkeypatch.setattr(loops, "Loop", CtrlCOnce(loops.Loop))
    ours = Client(driver)
    with pytest.raises(KeyboardInterrupt):
        ours.enqueue("q", "interrupted")
    ours.enqueue("q", "next")
    ours.flush(WAIT)
    assert ours.close() == 0


def test_ctrl_c_while_a_link_is_woken_leaves_it_to_the_next_call(driver, eventually):
    """It slept on until its time was up, whatever came."""
    ours = Client(driver)
    ours.enqueue("q", "first").accepted(WAIT)
    [loop] = [loop for link, loop in ours._loops._loops.items() if link.role is Role.PUBLISH]
    eventually(lambda: loop.woken._waiters)
    notify = loop.woken.notify = CtrlCOnce(loop.woken.notify)
    with pytest.raises(KeyboardInterrupt):
        ours.enqueue("q", "interrupted")
    ours.enqueue("q", "next")
    assert notify.calls
    assert ours.close() == 0


def test_ctrl_c_while_another_is_told_of_its_task_leaves_it_to_the_next_call(driver):
    """It waited for ever, though its outcome was known."""
    driver.make_unavailable()
    ours = Client(driver)
    handle, told = ours.enqueue_tracked("q", "x"), []

    def wait():
        with pytest.raises(TaskCancelled):
            handle.wait(WAIT)
        told.append(handle.status)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + WAIT
    while handle._submission.waiter is None or not handle._submission.waiter._waiters:
        assert time.monotonic() < deadline
    waiter = handle._submission.waiter
    waiter.notify_all = CtrlCOnce(waiter.notify_all)
    with pytest.raises(KeyboardInterrupt):
        handle.cancel()
    ours.enqueue("q", "next")
    thread.join(WAIT / 2)
    assert told == [Status.CANCELLED]
    driver.make_available()
    assert ours.close() == 0

"""The checker of reported losses: each check of `markers` fails on a history that breaks it."""

import pytest

from streamfleet_core.connection import ServerError

from .stage import Stage

GREET = [("UNWATCH",), ("MULTI",), ("HINCRBY", b"m", "e", 1), ("HGET", b"m", "s"), ("EXEC",), ("TIME",)]
CHECK = [("HGET", b"m", "s")]
PUBLISH = [("MULTI",), ("HSET", b"scheduled", b"id", b"body"), ("HSET", b"m", "s", 2), ("EXEC",), ("WATCH", b"m")]


@pytest.fixture
def stage():
    stage = Stage()
    stage.markers = stage.observer.markers
    stage.heard = lambda commands, *replies: stage.markers.heard(stage.client, commands, replies)
    stage.report = lambda: stage.markers.reported(stage.client, "lost")
    stage.greeted(None)
    stage.heard(PUBLISH, b"OK", b"QUEUED", b"QUEUED", [1, 0], b"OK")
    return stage


def lose(stage):
    stage.world.losses.append((0.0, set()))


def test_a_client_that_reports_what_it_sees(stage):
    lose(stage)
    stage.heard(CHECK, b"1")
    stage.greeted(b"1")
    stage.report()
    stage.greeted(b"1")
    stage.markers.judge_all()
    assert stage.violated == set()


def test_a_client_that_sees_no_loss(stage):
    stage.heard(CHECK, b"2")
    stage.greeted(b"2")
    stage.greeted(b"3")
    stage.markers.judge_all()
    assert stage.violated == set()


@pytest.mark.parametrize("then", ["goes on", "ends"])
def test_i16_a_loss_that_is_not_reported(stage, then):
    lose(stage)
    stage.greeted(None)
    if then == "goes on":
        stage.heard(CHECK, None)
    else:
        stage.markers.judge_all()
    assert stage.violated == {"I16"}


def test_i16_a_loss_that_is_not_looked_into(stage):
    lose(stage)
    stage.heard(CHECK, None)
    stage.heard(PUBLISH, b"OK", b"QUEUED", b"QUEUED", [1, 0], b"OK")
    assert stage.violated == {"I16"}


def test_i16_a_report_without_a_loss_at_the_marker(stage):
    lose(stage)
    stage.greeted(b"2")
    stage.report()
    assert stage.violated == {"I16"}


def test_i16_a_marker_that_went_back_though_the_server_has_lost_nothing(stage):
    stage.greeted(b"1")
    stage.report()
    assert stage.violated == {"I16"}


def test_what_was_not_applied_was_not_told(stage):
    third = [*PUBLISH[:2], ("HSET", b"m", "s", 3), *PUBLISH[3:]]
    stage.heard(third, b"OK", b"QUEUED", b"QUEUED", None, b"OK")
    stage.greeted(b"2")
    stage.markers.judge_all()
    assert stage.violated == set()


def test_a_refused_greeting_says_nothing(stage):
    refused, aborted = ServerError("OOM no memory"), ServerError("EXECABORT")
    stage.heard(GREET, b"OK", b"OK", refused, b"QUEUED", aborted, [b"1", b"2"])
    stage.markers.judge_all()
    assert stage.violated == set()


def test_i16_a_report_of_a_client_that_has_asked_nobody(stage):
    from streamfleet_core.events import EventKind

    stage.client.machine.emit(EventKind.MARKER_REGRESSED, "lost")
    stage.client.after_step()
    assert stage.violated == {"I16"}

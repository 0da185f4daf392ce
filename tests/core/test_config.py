import dataclasses
import math

import pytest

from streamfleet_core.config import MAX_CONCURRENCY, ClientConfig, WorkerConfig
from streamfleet_core.errors import UsageError

FIELDS = [(kind, field.name) for kind in (ClientConfig, WorkerConfig) for field in dataclasses.fields(kind)]
ZERO_MEANS_SOMETHING = {"drain", "prefetch_horizon", "keep_seconds", "keep_tasks"}
WHOLE = [(kind, name) for kind, name in FIELDS if isinstance(getattr(kind(), name), int)]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
@pytest.mark.parametrize("value", [-1, True, "3", None, math.nan, math.inf, -math.inf])
def test_nonsense_is_refused_with_its_name_and_value(kind, name, value):
    with pytest.raises(UsageError) as caught:
        kind(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_zero_is_refused_where_it_would_mean_for_ever_or_never(kind, name):
    if name in ZERO_MEANS_SOMETHING:
        assert getattr(kind(**{name: 0}), name) == 0
    else:
        with pytest.raises(UsageError, match=name):
            kind(**{name: 0})


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_counts_are_whole_and_bounded(kind, name):
    for value in (1.5, 10**12):
        with pytest.raises(UsageError, match="whole number"):
            kind(**{name: value})


def test_the_bounds_themselves_are_allowed():
    assert WorkerConfig(concurrency=MAX_CONCURRENCY).concurrency == MAX_CONCURRENCY
    assert WorkerConfig(lease=86_400).lease == 86_400
    with pytest.raises(UsageError, match="at most 86400"):
        WorkerConfig(lease=86_401)


CLIENT_COUNTS = ("max_payload", "buffer_tasks", "buffer_bytes", "batch_tasks", "batch_bytes")
HALF_A_GIGABYTE = 512 * 1024 * 1024


@pytest.mark.parametrize(
    ("kind", "name", "least", "largest"),
    [
        (WorkerConfig, "concurrency", 1, 10_000),
        (WorkerConfig, "max_deliveries", 1, 1_000_000),
        (WorkerConfig, "max_prefetch", 1, 100_000),
        *((ClientConfig, name, 1, HALF_A_GIGABYTE) for name in CLIENT_COUNTS),
        (ClientConfig, "keep_tasks", 0, 10_000_000),
    ],
)
def test_counts_reach_from_bound_to_bound(kind, name, least, largest):
    for value in (least, largest):
        assert getattr(kind(**{name: value}), name) == value
    owner = "worker" if kind is WorkerConfig else "client"
    for value in (least - 1, largest + 1):
        with pytest.raises(UsageError) as caught:
            kind(**{name: value})
        said = f"{owner}: {name} must be a whole number from {least} to {largest:,}, got {value}"
        assert str(caught.value) == said


DAY_AT_MOST = ("lease", "scan_interval", "poll_interval", "sweep_interval", "block")


@pytest.mark.parametrize(
    ("kind", "name", "bounds"),
    [
        *((WorkerConfig, name, "more than zero and at most 86400") for name in DAY_AT_MOST),
        *((WorkerConfig, name, "more than zero") for name in ("client_timeout", "consumer_timeout")),
        *((WorkerConfig, name, "zero or more") for name in ("drain", "prefetch_horizon")),
        *((ClientConfig, name, "more than zero") for name in ("heartbeat", "block", "marker_ttl")),
        (ClientConfig, "keep_seconds", "zero or more"),
    ],
)
def test_what_times_may_be_is_told(kind, name, bounds):
    with pytest.raises(UsageError) as caught:
        kind(**{name: -1.5})
    owner = "worker" if kind is WorkerConfig else "client"
    assert str(caught.value) == f"{owner}: {name} must be {bounds}, got -1.5"
    longest = 86_400 if "86400" in bounds else 1e12
    assert getattr(kind(**{name: longest}), name) == longest


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorkerConfig().lease = 3

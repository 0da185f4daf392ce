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


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorkerConfig().lease = 3

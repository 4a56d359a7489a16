"""A sweep of learning rates goes on beyond its end as long as the best is there, and no further."""

import math

import pytest

from updetr_d2.comparison.results import Measured
from updetr_d2.comparison.study import further_rate


def further(ap, default=0.001):
    return further_rate({rate: Measured(each, each, {}, 1.0) for rate, each in ap.items()}, default=default)


@pytest.mark.parametrize(
    ("ap", "expected"),
    [
        ({0.0005: 1.0, 0.001: 2.0, 0.002: 3.0}, 0.004),
        ({0.0005: 3.0, 0.001: 2.0, 0.002: 1.0}, 0.00025),
        ({0.002: 3.0, 0.0005: 1.0, 0.001: 2.0}, 0.004),  # in any order
        ({0.001: 1.0, 0.01: 2.0}, 0.1),
        ({0.0005: 1.0, 0.001: 3.0, 0.002: 2.0}, None),
        ({0.0005: 1.0, 0.001: 3.0, 0.002: 3.0}, None),  # the config's, where another is not better
        ({0.0005: 0.0, 0.001: 0.0, 0.002: 0.0}, None),
        ({0.0005: math.nan, 0.001: math.nan}, None),
        ({0.0005: 1.0, 0.001: 2.0, 0.002: math.nan}, None),
    ],
)
def test_the_next_rate_is_as_far_as_the_neighbor(ap, expected):
    assert further(ap) == (None if expected is None else pytest.approx(expected))

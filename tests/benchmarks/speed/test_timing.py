"""Measurements are taken in turn, warm-up does not count, medians and ratios are what they say."""

import platform

import pytest
import torch

from benchmarks.speed.timing import Clock, Measurement, measure_in_turn, peak_memory

CPU = torch.device("cpu")


def test_functions_run_in_turn_and_warmup_does_not_count():
    calls = []
    functions = {"ours": lambda: calls.append("o"), "reference": lambda: calls.append("r")}
    seconds = measure_in_turn(functions, repeats=3, warmup=2, clock=Clock(CPU))
    assert "".join(calls) == "or" * 5
    assert {name: len(values) for name, values in seconds.items()} == {"ours": 3, "reference": 3}


def test_median_spread_ratio_and_images_per_second():
    measured = Measurement("x", [1.0, 2.0, 3.0, 4.0, 100.0], [6.0, 9.0, 12.0], images=6)
    assert measured.median == 3.0
    assert measured.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert measured.ratio == 3.0
    assert measured.images_per_second == 2.0
    assert measured.as_dict()["reference_median_s"] == 9.0


def test_without_reference_or_images_there_is_no_ratio():
    measured = Measurement("x", [1.0])
    assert measured.ratio is None and measured.images_per_second is None and measured.spread == 0


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems do not tell")
def test_peak_memory_is_what_the_function_takes_for_a_moment():
    held = torch.ones(16 * 2**20)  # 64 MiB that are not the function's

    def take_128_mib():
        torch.ones(32 * 2**20)

    peak = peak_memory(take_128_mib, CPU)
    if peak is None:
        pytest.skip("this system does not reset the peak")
    assert peak == pytest.approx(128, abs=32)
    assert len(held)

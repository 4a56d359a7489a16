"""Recipes of several commands: done steps are skipped, output goes where it should, a failure says what to do."""

from pathlib import Path

import pytest

from benchmarks import steps


@pytest.fixture(name="steps")
def _steps(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return steps


def test_output_and_threads_of_a_step_beside_others(steps, tmp_path):
    script = "import os; print('threads', os.environ.get('OMP_NUM_THREADS'))"
    for _ in range(2):  # without a result it runs again, and the log is continued
        steps.run_step(
            "Count", ["-c", script], result=Path("none"), again="x", log=Path("logs/a.log"), threads=3
        )
    assert (tmp_path / "logs/a.log").read_text() == "threads 3\n" * 2


def test_the_users_number_of_threads_counts(steps, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = "import os; print(os.environ['OMP_NUM_THREADS'])"
    steps.run_step("Count", ["-c", script], result=Path("none"), again="x", log=Path("a.log"), threads=3)
    assert (tmp_path / "a.log").read_text() == "7\n"


def test_a_step_whose_result_is_there_does_not_run(steps, tmp_path):
    (tmp_path / "done").touch()
    steps.run_step("Fail", ["-c", "raise SystemExit(1)"], result=Path("done"), again="x")


def test_a_failure_names_the_step_its_log_and_the_way_on(steps):
    with pytest.raises(SystemExit, match=r"Train it: failed with status 3 \(a.log\); `make again` goes on"):
        steps.run_step(
            "Train it", ["-c", "raise SystemExit(3)"], result=Path("x"), again="make again", log=Path("a.log")
        )

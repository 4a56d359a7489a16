"""Trainings as processes: what is done stays, what was killed goes on, what fails is told or ends all."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from updetr_d2.comparison import jobs as module
from updetr_d2.comparison.jobs import Jobs, TimeLeft, TrainingError, duration, is_done, read_done
from updetr_d2.comparison.plan import PROPOSALS, Training
from updetr_d2.comparison.results import read_measured
from updetr_d2.data.proposals.making import parts_folder

PROGRAM = (sys.executable, str(Path(__file__).with_name("fake_training.py")))


@pytest.fixture(name="training")
def _training(tmp_path):
    def make(name: str, weights: str = "40", *, rate: str = "1e-3") -> Training:
        file = tmp_path / f"{name}.pth"
        file.write_text(weights)
        options = ("MODEL.WEIGHTS", str(file), "SOLVER.MAX_ITER", "10", "SOLVER.BASE_LR", rate, "SEED", "1")
        return Training(name, tmp_path / "runs" / name, "x.yaml", (*options, "DATASETS.TEST", "()"), 10)

    return make


@pytest.fixture(name="jobs")
def _jobs():
    def make(count: int = 1) -> Jobs:
        lines: list[str] = []
        jobs = Jobs(jobs=count, threads=1, gpus=(), total_iterations=100, say=lines.append, program=PROGRAM)
        jobs.lines = lines
        return jobs

    return make


def calls(training: Training) -> int:
    return len((training.folder / "calls").read_text().splitlines())


def test_all_are_run_once_and_told(training, jobs):
    trainings = [training(name) for name in "abc"]
    first = jobs(2)
    first.run(trainings, lambda each: f"AP {read_measured(each).ap:.1f}")
    assert len(first.lines) == 3 and all("AP 42.4" in line and " left" in line for line in first.lines)
    assert all(is_done(each) for each in trainings)
    second = jobs()
    second.run(trainings)
    assert second.lines == ["3 of 3 trainings were done before."]
    assert [calls(each) for each in trainings] == [1, 1, 1]


def test_a_training_without_its_marker_goes_on(training, jobs):
    one = training("a")
    jobs().run([one])
    (one.folder / module.DONE).unlink()
    (one.folder / "model_final.pth").unlink()
    jobs().run([one])
    assert calls(one) == 2


def test_a_training_that_came_to_its_end_unseen_is_done(training, jobs):
    one = training("a")
    jobs().run([one])
    (one.folder / module.DONE).unlink()
    jobs().run([one])
    assert calls(one) == 1 and is_done(one)
    (one.folder / module.DONE).unlink()
    # The evaluation at the end is missing.
    (one.folder / "metrics.json").write_text(json.dumps({"iteration": 5, "bbox/AP": 1.0}))
    jobs().run([one])
    assert calls(one) == 2


def test_other_settings_are_not_mixed(training, jobs):
    jobs().run([training("a")])
    with pytest.raises(TrainingError, match="was made with other settings"):
        jobs().run([training("a", rate="2e-3")])


def test_a_training_that_outlives_a_killed_comparison_is_waited_for(training, jobs):
    one = training("a", "40 hang")
    one.folder.mkdir(parents=True)
    orphan = subprocess.Popen([*PROGRAM, *one.command])
    while not (one.folder / "hung").exists():
        time.sleep(0.05)
    jobs().run([one])  # the lock would refuse a second one
    assert orphan.wait() == 0 and calls(one) == 1 and is_done(one)


def test_one_that_fails_at_its_start_ends_everything_with_its_reason(training, jobs):
    with pytest.raises(TrainingError, match=r"ValueError: these weights are bad.*console\.log"):
        jobs().run([training("a", "fail"), training("b")])
    assert not (training("b").folder / module.DONE).exists()


def with_proposals(training: Training) -> Training:
    weights = training.options[training.options.index("MODEL.WEIGHTS") + 1]
    output = str(training.folder / PROPOSALS)
    arguments = ("proposals", "folder:photos", "--output", output, "MODEL.WEIGHTS", weights)
    return dataclasses.replace(training, proposals=arguments)


def test_boxes_are_made_before_their_training_and_once(training, jobs):
    one = with_proposals(training("a"))
    jobs().run([one])
    assert json.loads((one.folder / PROPOSALS).read_text()) == list(one.proposals)
    for name in (module.DONE, "model_final.pth"):
        (one.folder / name).unlink()
    jobs().run([one])
    assert calls(one) == 2 and (one.folder / "proposals_calls").read_text() == "call\n"


def test_a_training_whose_boxes_cannot_be_made_is_not_begun(training, jobs):
    one = with_proposals(training("a", "40 no boxes"))
    with pytest.raises(TrainingError, match=r"error: no image could be used.*console\.log"):
        jobs().run([one])
    assert not (one.folder / "calls").exists()


def test_boxes_in_the_making_of_a_killed_comparison_are_waited_for(training, jobs):
    one = with_proposals(training("a"))
    parts = parts_folder(one.folder / PROPOSALS)
    parts.mkdir(parents=True)
    hold = "import sys, time; from updetr_d2.engine.run_lock import lock_output_dir; "
    hold += "lock_output_dir(sys.argv[1]); print(1, flush=True); time.sleep(1.5); open(sys.argv[2], 'w')"
    ended = one.folder / "ended"
    orphan = subprocess.Popen([sys.executable, "-c", hold, str(parts), str(ended)], stdout=subprocess.PIPE)
    orphan.stdout.readline()
    jobs().run([one])
    assert orphan.wait() == 0 and calls(one) == 1
    assert ended.stat().st_mtime_ns < (one.folder / PROPOSALS).stat().st_mtime_ns


def test_one_that_diverges_is_left_out(training, jobs):
    trainings = [training("a", "diverge"), training("b")]
    jobs().run(trainings)
    measured = read_measured(trainings[0])
    assert measured.ap != measured.ap and "not finite" in measured.failure
    assert read_measured(trainings[1]).ap == pytest.approx(42.4)
    jobs().run(trainings)
    assert calls(trainings[0]) == 1


def test_one_that_is_stopped_from_outside_is_no_result(training, jobs):
    one = training("a", "stopped")
    with pytest.raises(TrainingError, match=r"ended with status 75 .* goes on from here"):
        jobs().run([one])
    assert read_done(one) is None


def test_stopping_ends_the_processes(training, jobs):
    running, one = jobs(), training("a", "40 hang")
    thread = threading.Thread(target=running.run, args=([one],))
    thread.start()
    while not (one.folder / "hung").exists():
        time.sleep(0.05)
    began = time.monotonic()
    running.stop()
    thread.join()
    assert time.monotonic() - began < 1.9 and not (one.folder / module.DONE).exists()


def test_each_training_has_a_gpu_of_its_own(monkeypatch):
    jobs = Jobs(jobs=3, threads=0, gpus=("4", "7"), total_iterations=1)
    assert [jobs.slots.get() for _ in range(3)] == ["4", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert module.training_environment(gpu="7")["CUDA_VISIBLE_DEVICES"] == "7"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_the_time_left_comes_from_this_session(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    left = TimeLeft(100)
    assert left.sentence() == "time left unknown"
    left.skip(40)
    now[0] += 50
    left.running = 5
    assert left.sentence() == "about 9 min left"  # 10 s each, 55 to go
    left.running = 0
    left.add(60)
    assert left.sentence() == "all done"
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


def test_what_still_runs_counts_when_another_has_ended(training, jobs, monkeypatch):
    trainings = [training("a"), training("b", "40 hang")]
    counts = iter([0, 3, 7])  # the second has 3 of an earlier session
    monkeypatch.setattr(module, "iterations_done", lambda each: next(counts))
    running = jobs(2)
    counted = []
    running.run(trainings, lambda each: counted.append((running._eta.running, running._eta.remaining)))
    assert counted == [(4, 100 - 3 - 10), (0, 100 - 10 - 10)]


def test_how_far_a_training_is_comes_from_its_metrics(training):
    one = training("a")
    assert module.iterations_done(one) == 0
    one.folder.mkdir(parents=True)
    (one.folder / "metrics.json").write_text(json.dumps({"iteration": 5}) + "\n{cut off")
    assert module.iterations_done(one) == 6

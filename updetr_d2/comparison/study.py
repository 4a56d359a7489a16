"""A comparison from its plan to its verdict: trainings in three stages, results, ``compare.json``."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from updetr_d2.comparison.jobs import Jobs
from updetr_d2.comparison.plan import Contestant, Plan, Subset, Training
from updetr_d2.comparison.results import Measured, best_rate, read_measured
from updetr_d2.comparison.starts import BASELINE
from updetr_d2.comparison.verdict import Scores, Verdict, judge
from updetr_d2.utils.files import write_text

RESULTS = "compare.json"
# Rates beyond ``--rates`` that a sweep goes on to, one after the other, while its best is at an end.
MOST_FURTHER_RATES = 3


@dataclass
class Study:
    """Everything that was measured.

    Attributes:
        plan: what was to be measured.
        rates: contestant -> learning rate that was chosen.
        sweeps: contestant -> rate -> result on held-out labels; empty where there was nothing to choose.
        trainings: contestant, percent and seed -> training.
        measured: the same -> its result on the test set.
    """

    plan: Plan
    rates: dict[str, float]
    sweeps: dict[str, dict[float, Measured]]
    trainings: dict[tuple[str, float, int], Training]
    measured: dict[tuple[str, float, int], Measured]

    @property
    def percents(self) -> list[float]:
        return sorted({subset.percent for subset in self.plan.subsets})

    def num_images(self, percent: float) -> int:
        """Labelled images of a fraction."""
        return next(subset.num_images for subset in self.plan.subsets if subset.percent == percent)

    def scores(self, percent: float) -> list[Scores]:
        """Results with a fraction of the labels, those that need least first."""
        rows = []
        for contestant in self.plan.contestants:
            own = {
                seed: each
                for (name, of_percent, seed), each in self.measured.items()
                if name == contestant.name and of_percent == percent
            }
            rows.append(
                Scores(
                    contestant.name,
                    contestant.title,
                    ap={seed: each.ap for seed, each in own.items()},
                    ap50={seed: each.ap50 for seed, each in own.items()},
                    seconds=sum(each.seconds for each in own.values()) / max(1, len(own)),
                    baseline=self._baseline(contestant),
                )
            )
        starts = {each.name: each.start_name for each in self.plan.contestants}
        return sorted(rows, key=lambda each: (starts[each.name] != BASELINE, each.seconds))

    def _baseline(self, contestant: Contestant) -> str:
        return next(
            (
                each.name
                for each in self.plan.contestants
                if each.detector == contestant.detector and each.start_name == BASELINE
            ),
            "",
        )

    def verdict(self, percent: float) -> Verdict:
        return judge(self.scores(percent), iterations=self.plan.iterations)


def carry_out(plan: Plan, jobs: Jobs, *, say: Callable[[str], None] = print) -> Study:
    """Run all trainings that have not been run yet.

    Args:
        plan: what to measure.
        jobs: runs trainings.
        say: where lines for people go.

    Raises:
        TrainingError: if a training cannot be made.
    """
    pretrainings = plan.pretrainings()
    beside = beside_pretraining(plan) if pretrainings else []
    if pretrainings:
        say("\n=== Pre-training on the images without labels; beside it, what does not wait for it")
        jobs.run([*pretrainings, *beside], result_words)
    sweeps, rates = choose_rates(plan, jobs, say, made=beside)
    say("\n=== Measured trainings")
    trainings = {
        (contestant.name, subset.percent, subset.seed): plan.measurement(
            contestant, subset, rates[contestant.name]
        )
        for subset in by_seed(plan.subsets)
        for contestant in plan.contestants
    }
    jobs.run([each for each in trainings.values() if each not in beside], result_words)
    measured = {key: read_measured(training) for key, training in trainings.items()}
    return Study(plan, rates, sweeps, trainings, measured)


def beside_pretraining(plan: Plan) -> list[Training]:
    """Trainings of the stage after it whose contestants need none: they leave no core idle beside it."""
    free = [each for each in plan.contestants if each.pretraining is None]
    if len(plan.rates) > 1:
        return [training for each in free for training in plan.sweep(each, plan.base_rates(each)).values()]
    rate = plan.rates[0]
    return [
        plan.measurement(each, subset, each.base_rate * rate)
        for subset in by_seed(plan.subsets)
        for each in free
    ]


def choose_rates(
    plan: Plan, jobs: Jobs, say: Callable[[str], None], *, made: list[Training]
) -> tuple[dict[str, dict[float, Measured]], dict[str, float]]:
    """Results on held-out labels, and the learning rate of each contestant; ``made`` are trainings already run."""
    if len(plan.rates) == 1:
        return {}, {each.name: each.base_rate * plan.rates[0] for each in plan.contestants}
    say("\n=== Learning rates, chosen on held-out labels")
    planned = {each.name: plan.sweep(each, plan.base_rates(each)) for each in plan.contestants}
    swept = [training for sweep in planned.values() for training in sweep.values()]
    jobs.run([each for each in swept if each not in made], result_words)
    sweeps = {
        name: {rate: read_measured(training) for rate, training in sweep.items()}
        for name, sweep in planned.items()
    }
    for _ in range(MOST_FURTHER_RATES):
        further = {
            each.name: plan.sweep(each, (rate,))
            for each in plan.contestants
            if (rate := further_rate(sweeps[each.name], default=each.base_rate)) is not None
        }
        jobs.run_more([each for sweep in further.values() for each in sweep.values()], result_words)
        for name, sweep in further.items():
            sweeps[name] |= {rate: read_measured(training) for rate, training in sweep.items()}
    rates = {each.name: best_rate(sweeps[each.name], default=each.base_rate) for each in plan.contestants}
    for each in plan.contestants:
        say(f"{each.title}: rate {rates[each.name]:g}")
    return {name: dict(sorted(sweep.items())) for name, sweep in sweeps.items()}, rates


def further_rate(measured: dict[float, Measured], *, default: float) -> float | None:
    """The next learning rate if the best so far is at an end of the sweep, where a better one may lie beyond it.

    Args:
        measured, default: as for :func:`.results.best_rate`.

    Returns:
        as far from the best as the best is from its neighbor; None if it has others on both sides, or has learned
        nothing.
    """
    best = best_rate(measured, default=default)
    rates = sorted(measured)
    if not measured[best].ap > 0 or best not in (rates[0], rates[-1]):
        return None
    neighbor = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / neighbor:.6g}")


def by_seed(subsets: list[Subset]) -> list[Subset]:
    """One seed after the other, so that an unfinished comparison has the same seeds of all."""
    return sorted(subsets, key=lambda each: (each.seed, each.percent))


def result_words(training: Training) -> str:
    """What a training has reached, for the console."""
    if not training.evaluated:
        return "done"
    measured = read_measured(training)
    if measured.failure:
        return f"failed ({measured.failure})"
    return f"AP {measured.ap:.1f}, AP50 {measured.ap50:.1f}"


def total_iterations(plan: Plan) -> int:
    """Of all trainings of a plan."""
    swept = len(plan.rates) if len(plan.rates) > 1 else 0
    detectors = len(plan.contestants) * (len(plan.subsets) + swept) * plan.iterations
    return detectors + len(plan.pretrainings()) * plan.pretraining_iterations


def to_json(study: Study, *, settings: dict, data: dict, errors: dict, seconds: float) -> dict:
    """The content of ``compare.json``; what has no value is null.

    Args:
        study: what was measured.
        settings: of the command line.
        data: numbers of images and objects, notes.
        errors: contestant -> kinds of errors.
        seconds: of this call.
    """
    plan = study.plan
    return {
        "version": 1,
        "settings": settings,
        "data": data,
        "contestants": [
            {
                "name": each.name,
                "title": each.title,
                "detector": each.detector,
                "start": each.start_name,
                "rate": study.rates[each.name],
                "rates_on_held_out_labels": {
                    f"{rate:g}": number(measured.ap)
                    for rate, measured in study.sweeps.get(each.name, {}).items()
                },
            }
            for each in plan.contestants
        ],
        "runs": [
            {
                "contestant": name,
                "percent": percent,
                "seed": seed,
                "folder": str(study.trainings[name, percent, seed].folder.relative_to(plan.output)),
                "command": ["updetr", *study.trainings[name, percent, seed].command],
                "AP": number(measured.ap),
                "AP50": number(measured.ap50),
                "curves": measured.curves,
                "seconds": measured.seconds,
                "failure": measured.failure,
            }
            for (name, percent, seed), measured in study.measured.items()
        ],
        "verdicts": [
            {
                "percent": percent,
                "labeled_images": study.num_images(percent),
                "kind": verdict.kind,
                "use": verdict.use,
                "sentences": verdict.sentences,
                "comparisons": [
                    {key: number(value) for key, value in asdict(each).items()}
                    for each in verdict.comparisons
                ],
            }
            for percent in study.percents
            for verdict in [study.verdict(percent)]
        ],
        "errors": errors,
        "seconds": round(seconds, 1),
    }


def number(value: object) -> object:
    """A value that JSON has: NaN becomes None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(content: dict, folder: Path) -> Path:
    path = folder / RESULTS
    write_text(path, json.dumps(content, indent=1))
    return path

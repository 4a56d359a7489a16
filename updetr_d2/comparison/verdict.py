"""What measured results say: which contestant to use, by how much, or that the difference is noise.

Contestants are compared on the same seeds: each seed has its own choice of labels and its own order of images,
which are those of all contestants. The intervals hold with 95 % for all differences of a table together, so that
the best of many is not taken for better by chance.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MIN_SEEDS = 3  # two give no idea of how much results vary
# Percent. Below it the boxes are of no use, whoever has more.
LEARNED_AP50 = 5.0
BETTER, WORSE, NOISE, TOO_FEW = "better", "worse", "noise", "too few seeds"


@dataclass(frozen=True)
class Scores:
    """Results of a contestant with one fraction of the labels.

    Attributes:
        name: of the contestant, unique.
        title: for sentences.
        ap: seed -> COCO's AP in percent; NaN where the training failed.
        ap50: seed -> AP50 in percent.
        seconds: of a training, on average.
        baseline: name of what it is to be measured against beside the best; "" for none.
    """

    name: str
    title: str
    ap: dict[int, float]
    ap50: dict[int, float]
    seconds: float = 0.0
    baseline: str = ""

    @property
    def values(self) -> list[float]:
        return [value for value in self.ap.values() if not math.isnan(value)]

    @property
    def mean(self) -> float:
        """0 if every training has failed."""
        return float(np.mean(self.values)) if self.values else 0.0

    @property
    def mean_ap50(self) -> float:
        values = [value for value in self.ap50.values() if not math.isnan(value)]
        return float(np.mean(values)) if values else 0.0


@dataclass(frozen=True)
class Comparison:
    """The difference between two contestants.

    Attributes:
        first: name.
        second: name.
        seeds: that all contestants of the table have results for.
        mean: AP of the first less that of the second.
        low: lower end of the interval; NaN with less than two seeds.
        high: upper end.
        outcome: of the first: :data:`BETTER`, :data:`WORSE`, :data:`NOISE` or :data:`TOO_FEW`.
    """

    first: str
    second: str
    seeds: int
    mean: float
    low: float
    high: float
    outcome: str

    def words(self) -> str:
        """The difference with its interval."""
        if self.outcome == TOO_FEW:
            return f"{self.mean:+.1f} AP, with {self.seeds} seeds too few to tell"
        interval = f"interval {self.low:+.1f} to {self.high:+.1f}, paired over {self.seeds} seeds"
        return f"{self.mean:+.1f} AP ({interval})"


def compare_pairs(pairs: Sequence[tuple[Scores, Scores]], *, among: Sequence[Scores]) -> list[Comparison]:
    """Differences over the seeds that everyone has, with intervals that hold for all of them together.

    Args:
        pairs: first and second of each comparison.
        among: all contestants of the table, those of the pairs included, with the same fraction of the labels.
    """
    seeds = [
        seed
        for seed in among[0].ap
        if all(seed in each.ap and not math.isnan(each.ap[seed]) for each in among)
    ]
    table = np.array([[each.ap[seed] for seed in seeds] for each in among])
    margin = tukey_margin(table)
    rows = {each.name: row for each, row in zip(among, table)}
    comparisons = []
    for first, second in pairs:
        mean = float((rows[first.name] - rows[second.name]).mean()) if seeds else 0.0
        low, high = mean - margin, mean + margin
        if len(seeds) < MIN_SEEDS:
            outcome = TOO_FEW
        elif low > 0:
            outcome = BETTER
        elif high < 0:
            outcome = WORSE
        else:
            outcome = NOISE
        comparisons.append(Comparison(first.name, second.name, len(seeds), mean, low, high, outcome))
    return comparisons


def tukey_margin(table: np.ndarray) -> float:
    """How far the difference of any two means may be off, for all differences of a table together.

    That is Tukey's interval in a randomized complete block design (Montgomery, Design and Analysis of Experiments,
    chapter 4), whose blocks are the seeds: what is left of a result without the mean of its contestant and that of
    its seed is noise, of the same size for everyone. For two contestants it is the paired t-test.

    Args:
        table: float ``[contestants, seeds]``, AP.

    Returns:
        half of the interval, in AP; NaN for less than two contestants or seeds.
    """
    num_contestants, num_seeds = table.shape
    if min(num_contestants, num_seeds) < 2:
        return math.nan
    noise = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    degrees = (num_contestants - 1) * (num_seeds - 1)
    return _tukey_quantile(num_contestants, degrees) * math.sqrt((noise**2).sum() / degrees / num_seeds)


@functools.lru_cache
def _tukey_quantile(num_contestants: int, degrees: int) -> float:
    """Of the studentized range; SciPy integrates for a tenth of a second."""
    return float(stats.studentized_range.ppf(CONFIDENCE, num_contestants, degrees))


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        kind: "use", "noise", "nothing has learned" or "too few seeds".
        use: name of the contestant to take; "" where nothing has learned.
        sentences: for people, the first is the verdict.
        comparisons: of the best with all others, and of each contestant with its baseline.
    """

    kind: str
    use: str
    sentences: list[str]
    comparisons: list[Comparison] = field(default_factory=list)


def judge(scores: Sequence[Scores], *, iterations: int) -> Verdict:
    """The verdict on contestants with the same labels.

    Args:
        scores: in the order of preference: of those that cannot be told apart, the first is recommended.
        iterations: of their trainings.
    """
    everyone = scores
    # Those that have failed too often to be judged take the verdict from nobody.
    scores = [each for each in scores if len(each.values) >= MIN_SEEDS] or scores
    best = max(scores, key=lambda each: each.mean)
    others = [each for each in scores if each is not best]
    by_name = {each.name: each for each in scores}
    against_best = compare_pairs([(best, each) for each in others], among=scores)
    against_baseline = compare_pairs(
        [
            (each, by_name[each.baseline])
            for each in scores
            if each.baseline in by_name and each.baseline != each.name
        ],
        among=scores,
    )
    if best.mean_ap50 < LEARNED_AP50:
        sentence = (
            f"Nothing has learned: the best, {best.title}, has AP50 {best.mean_ap50:.1f} after {iterations} "
            "iterations. Train longer (--iterations), label more, or look at the pictures: are the boxes of the "
            "labels right?"
        )
        return Verdict("nothing has learned", "", [sentence], [*against_best, *against_baseline])
    titles = {each.name: each.title for each in scores}
    tied = [best, *(by_name[c.second] for c in against_best if c.outcome != BETTER)]
    kind, use, first = _first_sentence(best, scores, against_best, tied)
    answers = [_answer(each, titles) for each in against_baseline]
    answered = {each.second for each in against_baseline if each.first == best.name}
    rest = [
        f"{best.title} is better than {titles[each.second]} by {each.words()}."
        for each in against_best
        if each.outcome == BETTER and titles[each.second] not in first and each.second not in answered
    ]
    failed = [
        f"{each.title}: {missing} of {len(each.ap)} trainings failed."
        for each in everyone
        if (missing := len(each.ap) - len(each.values))
    ]
    return Verdict(kind, use, [first, *answers, *rest, *failed], [*against_best, *against_baseline])


def _first_sentence(
    best: Scores, scores: Sequence[Scores], against_best: Sequence[Comparison], tied: Sequence[Scores]
) -> tuple[str, str, str]:
    mean = f"AP {best.mean:.1f}, AP50 {best.mean_ap50:.1f}"
    if not against_best:
        return "use", best.name, f"{best.title} has {mean}; there is nothing to compare it with."
    if any(each.outcome == TOO_FEW for each in against_best):
        sentence = (
            f"Too few seeds for a verdict: {best.title} has the highest mean ({mean}), but a verdict needs "
            f"{MIN_SEEDS} results of each; add --seeds."
        )
        return "too few seeds", best.name, sentence
    if len(tied) == 1:
        closest = min(against_best, key=lambda each: each.mean)
        runner_up = next(each for each in scores if each.name == closest.second)
        sentence = f"Use {best.title}: {mean}, better than the next, {runner_up.title}, by {closest.words()}."
        return "use", best.name, sentence
    first = next(each for each in scores if each in tied)
    names = ", ".join(each.title for each in scores if each in tied)
    widest = max((each for each in against_best if each.outcome != BETTER), key=lambda each: each.mean)
    sentence = (
        f"The difference is noise between {names}: at most {widest.words()}. Take {first.title} "
        f"(AP {first.mean:.1f}, AP50 {first.mean_ap50:.1f}), which needs least."
    )
    return "noise", first.name, sentence


def _answer(comparison: Comparison, titles: dict[str, str]) -> str:
    """Whether a start pays, against the baseline of the same detector."""
    first, second = titles[comparison.first], titles[comparison.second]
    if comparison.outcome == BETTER:
        return f"{first} pays: {comparison.words()} over {second}."
    if comparison.outcome == WORSE:
        return f"{first} is worse than {second}: {comparison.words()}."
    if comparison.outcome == NOISE:
        return f"{first} and {second}: the difference is noise, {comparison.words()}."
    return f"{first} and {second}: {comparison.words()}."

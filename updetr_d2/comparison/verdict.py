"""What measured results say: which contestant to use, by how much, or that the difference is noise.

Contestants are compared on the same seeds: each seed has its own choice of labels and its own order of images,
which are those of all contestants. The interval is that of a paired t-test over the seeds, at 95 % for all
comparisons together (Bonferroni), so that the best of many is not taken for better by chance.
"""

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
        seeds: that both have results for.
        mean: AP of the first less that of the second.
        low: lower end of the interval; NaN with a single seed.
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


def compare(first: Scores, second: Scores, *, num_comparisons: int = 1) -> Comparison:
    """Paired difference of two contestants over the seeds that both have.

    Args:
        first, second: with the same fraction of the labels.
        num_comparisons: that are made together; the interval is the wider for it.
    """
    seeds = [
        seed
        for seed in first.ap
        if seed in second.ap and not math.isnan(first.ap[seed]) and not math.isnan(second.ap[seed])
    ]
    differences = np.array([first.ap[seed] - second.ap[seed] for seed in seeds])
    mean = float(differences.mean()) if len(seeds) else 0.0
    low, high = paired_interval(differences, confidence=1 - (1 - CONFIDENCE) / num_comparisons)
    if len(seeds) < MIN_SEEDS:
        outcome = TOO_FEW
    elif low > 0:
        outcome = BETTER
    elif high < 0:
        outcome = WORSE
    else:
        outcome = NOISE
    return Comparison(first.name, second.name, len(seeds), mean, low, high, outcome)


def paired_interval(differences: np.ndarray, *, confidence: float) -> tuple[float, float]:
    """Student's interval of the mean of differences; NaN for fewer than two."""
    count = len(differences)
    if count < 2:
        return math.nan, math.nan
    error = differences.std(ddof=1) / math.sqrt(count)
    if not error:
        return float(differences.mean()), float(differences.mean())
    low, high = stats.t.interval(confidence, df=count - 1, loc=differences.mean(), scale=error)
    return float(low), float(high)


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
    family = max(1, len(others))
    against_best = [compare(best, each, num_comparisons=family) for each in others]
    by_name = {each.name: each for each in scores}
    against_baseline = [
        compare(each, by_name[each.baseline], num_comparisons=family)
        for each in scores
        if each.baseline in by_name and each.baseline != each.name
    ]
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

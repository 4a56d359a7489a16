"""The trainings of a comparison: which there are, their folders and their commands. Nothing is run here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from updetr_d2.comparison.starts import Start, short_name
from updetr_d2.data.proposals.making import parts_folder

PROPOSALS = "boxes.npz"  # in the folder of a pre-training
EVALUATIONS = 5  # of each training on the test set, for curves


@dataclass(frozen=True)
class Contestant:
    """A detector with a start.

    Attributes:
        detector: its config.
        start_name: in the registry of starts, or a name of the command line's own.
        start: what that is.
        base_rate: SOLVER.BASE_LR of the config.
        batch_size: SOLVER.IMS_PER_BATCH of the config.
        proposals: options of ``updetr proposals`` that makes the boxes of its pre-training; () for none.
    """

    detector: str
    start_name: str
    start: Start
    base_rate: float
    batch_size: int
    proposals: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In folders and files."""
        return f"{short_name(self.detector)}-{self.start_name}"

    @property
    def title(self) -> str:
        """In sentences."""
        return f"{short_name(self.detector)} from {self.start.title}"

    @property
    def pretraining(self) -> str | None:
        """Config of the training on images without labels that it starts from; None for none."""
        return self.start.pretraining.get(self.detector)


@dataclass(frozen=True)
class Training:
    """One call of ``updetr train``.

    Attributes:
        title: for people.
        folder: OUTPUT_DIR.
        config: for ``--config-file``.
        options: alternating keys and values.
        iterations: SOLVER.MAX_ITER.
        metric_prefix: before "bbox/AP" in its metrics.
        results: folder inside of ``folder`` whose "inference" holds its predictions, "" for itself.
        evaluated: whether it has a test set.
        may_diverge: whether the comparison goes on without its result if its loss is no number any more.
        proposals: arguments of ``updetr`` that make its boxes first; () for none.
    """

    title: str
    folder: Path
    config: str
    options: tuple[str, ...]
    iterations: int
    metric_prefix: str = ""
    results: str = ""
    evaluated: bool = True
    may_diverge: bool = True
    proposals: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """Arguments of ``updetr``."""
        options = [*self.options, "OUTPUT_DIR", str(self.folder)]
        return ["train", "--config-file", self.config, "--resume", *options]

    @property
    def locked_folders(self) -> list[Path]:
        """Those that its processes hold while they run."""
        return [self.folder, parts_folder(self.folder / PROPOSALS)]


@dataclass(frozen=True)
class Subset:
    """Labels of one seed and fraction.

    Attributes:
        percent: of the labels.
        seed: of the choice, and of trainings on it.
        num_images: labelled images.
        dataset: name for DATASETS.TRAIN.
    """

    percent: float
    seed: int
    num_images: int
    dataset: str


@dataclass
class Plan:
    """All that is compared.

    Attributes:
        output: folder of the comparison.
        contestants: detectors with their starts.
        subsets: labels of each fraction and seed; the largest fraction last.
        test: name of the test set.
        tuning: names of the two parts of the labels that rates are chosen on, to train and to measure.
        unlabeled: name of the images without labels; "" without any.
        weights: option -> file, see ``Start.weights``.
        iterations: of each training of a detector.
        pretraining_iterations: of each pre-training.
        rates: factors of a detector's SOLVER.BASE_LR to choose from; a single one is taken as it is.
        options: of the command line, for every training.
    """

    output: Path
    contestants: list[Contestant]
    subsets: list[Subset]
    test: str
    tuning: tuple[str, str]
    unlabeled: str
    weights: dict[str, str]
    iterations: int
    pretraining_iterations: int
    rates: Sequence[float]
    options: tuple[str, ...] = field(default_factory=tuple)

    def pretrainings(self) -> list[Training]:
        """Those that the starts need, once for each config."""
        trainings: dict[str, Training] = {}
        for each in self.contestants:
            config = each.pretraining
            if config:
                folder = self._pretraining_folder(config)
                weights = ("MODEL.WEIGHTS", self.weights[each.start.weights])
                boxes = str(folder / PROPOSALS)
                proposals: tuple[str, ...] = ()
                if each.proposals and "INPUT.PROPOSALS.FILE" not in self.options:
                    proposals = ("proposals", self.unlabeled, *each.proposals, "--output", boxes)
                    proposals += ("--config-file", config, *weights, *self.options)
                settings = (
                    *("DATASETS.TRAIN", f"('{self.unlabeled}',)", "DATASETS.TEST", "()"),
                    *weights,
                    *_schedule(self.pretraining_iterations, evaluations=0),
                    *(("INPUT.PROPOSALS.FILE", boxes) if proposals else ()),
                    *("SEED", "1", *self.options),
                )
                trainings[config] = Training(
                    f"pre-training {short_name(config)}",
                    folder,
                    config,
                    settings,
                    self.pretraining_iterations,
                    evaluated=False,
                    may_diverge=False,
                    proposals=proposals,
                )
        return list(trainings.values())

    def base_rates(self, contestant: Contestant) -> list[float]:
        """Learning rates of ``rates``."""
        return [contestant.base_rate * factor for factor in self.rates]

    def sweep(self, contestant: Contestant, rates: Sequence[float]) -> dict[float, Training]:
        """Learning rate -> a training on one part of the labels that is measured on the other."""
        train, held_out = self.tuning
        return {
            rate: self._training(
                contestant,
                f"rate {rate:g}: {contestant.title}",
                self.output / "rates" / f"{contestant.name}-{rate:g}",
                train=train,
                test=held_out,
                rate=rate,
                seed=1,
                evaluations=1,
            )
            for rate in rates
        }

    def measurement(self, contestant: Contestant, subset: Subset, rate: float) -> Training:
        """The training whose result on the test set counts."""
        return self._training(
            contestant,
            f"{contestant.title}, {subset.num_images} labelled images, seed {subset.seed}",
            self.output / "runs" / f"{contestant.name}-{subset.percent:g}pct-seed{subset.seed}",
            train=subset.dataset,
            test=self.test,
            rate=rate,
            seed=subset.seed,
            evaluations=EVALUATIONS,
        )

    def _training(
        self,
        contestant: Contestant,
        title: str,
        folder: Path,
        *,
        train: str,
        test: str,
        rate: float,
        seed: int,
        evaluations: int,
    ) -> Training:
        start = contestant.start
        weights = (
            str(self._pretraining_folder(contestant.pretraining) / "model_final.pth")
            if contestant.pretraining
            else self.weights.get(start.weights, start.weights)
        )
        places = {
            "{unlabeled}": self.unlabeled,
            "{third}": str(max(1, self.iterations // 3)),
            "{sixth}": str(max(1, self.iterations // 6)),
        }
        options = (
            *("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)", "MODEL.WEIGHTS", weights),
            *_schedule(self.iterations, evaluations=evaluations),
            *("SOLVER.BASE_LR", f"{rate:g}", "SEED", str(seed)),
            *(_filled(option, places) for option in start.options),
            *self.options,
        )
        return Training(
            title,
            folder,
            contestant.detector,
            options,
            self.iterations,
            metric_prefix=start.metric_prefix,
            results=start.results,
        )

    def _pretraining_folder(self, config: str) -> Path:
        return self.output / "pretraining" / short_name(config)


def _filled(option: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        option = option.replace(place, value)
    return option


def _schedule(iterations: int, *, evaluations: int) -> tuple[str, ...]:
    period = -(-iterations // evaluations) if evaluations else 0
    return (
        *("SOLVER.MAX_ITER", str(iterations), "SOLVER.EPOCHS", "0", "SOLVER.ADVISED_ITERS", "0"),
        # A kill costs a quarter of a training at most.
        *("SOLVER.CHECKPOINT_PERIOD", str(max(1, -(-iterations // 4))), "SOLVER.CHECKPOINT_EPOCHS", "0"),
        *("SOLVER.KEEP_CHECKPOINTS", "1"),
        # The page of the comparison has pictures of its own.
        *("TEST.EVAL_PERIOD", str(period), "TEST.EVAL_EPOCHS", "0", "TEST.VIS_IMAGES", "0"),
    )

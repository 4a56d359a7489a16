"""What a detector may start from, and how: the registry that ``--starts`` of ``updetr compare`` chooses from."""

from dataclasses import dataclass, field
from pathlib import Path

from updetr_d2.config.files import CONFIGS

# The detectors that are compared unless the command line names others.
FEW_LABEL = "custom/few_label_lite0.yaml"
FASTER_RCNN = "custom/faster_rcnn_lite0.yaml"
DETECTORS = (FEW_LABEL, FASTER_RCNN)
NUM_CLUSTERS = 32  # of the boxes of a pre-training (docs/PRETRAINING.md)


@dataclass(frozen=True)
class Start:
    """A way to start, and go through, the training of a detector.

    Options are alternating keys and values as on the command line of ``updetr train``; in values
    ``{unlabeled}`` stands for the name of the images without labels, ``{third}`` and ``{sixth}`` for such parts
    of the iterations.

    Attributes:
        title: in tables and sentences, after the name of the detector.
        weights: option of ``updetr compare`` that names MODEL.WEIGHTS, "weights" or "coco_weights"; or a file.
        pretraining: detector's config -> config whose training on images without labels gives MODEL.WEIGHTS
            instead.
        options: for the training of the detector.
        mean_teacher: whether the training learns from images without labels, too, which not all detectors can.
        first_only: whether it is a start of the first of ``--detectors`` alone.
        needs_unlabeled: whether there must be images without labels.
        results: before the names of its metrics and in the path of its predictions, such as "ema" for averaged
            weights.
    """

    title: str
    weights: str = "weights"
    pretraining: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    mean_teacher: bool = False
    first_only: bool = False
    needs_unlabeled: bool = False
    results: str = ""

    def suits(self, detector: str, *, with_unlabeled: bool, first: bool) -> bool:
        """Whether a detector can start so.

        Args:
            detector: its config.
            with_unlabeled: whether it can learn from images without labels, too.
            first: whether it is the first of ``--detectors``.
        """
        return (
            (first or not self.first_only)
            and (with_unlabeled or not self.mean_teacher)
            and (not self.pretraining or detector in self.pretraining)
        )

    @property
    def metric_prefix(self) -> str:
        return f"{self.results}/" if self.results else ""


_PRETRAINING = {FEW_LABEL: "custom/few_label_lite0_pretrain_clusters.yaml"}
_TEACHER = (
    *("DATASETS.UNLABELED", "('{unlabeled}',)"),
    *("SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.99"),
    *("SOLVER.MEAN_TEACHER.UNLABELED_RATIO", "1"),
    *("SOLVER.MEAN_TEACHER.BURN_IN_ITERS", "{third}", "SOLVER.MEAN_TEACHER.RAMP_ITERS", "{sixth}"),
)

# The first is what the others are measured against: it needs nothing but labels.
BASELINE = "cnn"
STARTS: dict[str, Start] = {
    BASELINE: Start("CNN weights alone"),
    "pretrained": Start(
        "our pre-training",
        pretraining=_PRETRAINING,
        needs_unlabeled=True,
    ),
    "coco": Start("COCO checkpoint", weights="coco_weights", first_only=True),
    "teacher": Start(
        "mean teacher",
        options=_TEACHER,
        mean_teacher=True,
        needs_unlabeled=True,
        results="ema",
    ),
    "pretrained_teacher": Start(
        "our pre-training, with a mean teacher",
        pretraining=_PRETRAINING,
        options=_TEACHER,
        mean_teacher=True,
        needs_unlabeled=True,
        results="ema",
    ),
}

# Unless the command line names others, those of these that there are data and weights for.
DEFAULT_STARTS = (BASELINE, "pretrained", "coco", "teacher")


def short_name(config: str) -> str:
    """A detector's name in tables and folders: that of its config file."""
    return Path(config).stem


def recipe_name(config: str) -> str:
    """A config by the name of its recipe where it is one, so that "configs/custom/x.yaml" is "custom/x.yaml"."""
    path = Path(config).resolve()
    if path.is_file() and path.is_relative_to(CONFIGS.resolve()):
        return path.relative_to(CONFIGS.resolve()).as_posix()
    return config.removeprefix("configs/") if not Path(config).is_file() else config

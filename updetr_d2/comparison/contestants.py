"""From names on the command line to the contestants: every detector with every start that suits it."""

import dataclasses
import os
from collections.abc import Sequence

from updetr_d2.comparison.plan import Contestant
from updetr_d2.comparison.starts import (
    DEFAULT_STARTS,
    NUM_CLUSTERS,
    STARTS,
    Start,
    recipe_name,
    short_name,
)
from updetr_d2.config.files import read_config
from updetr_d2.tasks.base import task_of


def choose_starts(
    names: Sequence[str] | None, *, weights: dict[str, str], unlabeled: str, own: Sequence[Sequence[str]]
) -> dict[str, Start]:
    """The starts that were asked for, or the usual ones that are possible; then people's own.

    Args:
        names: in the registry; None for the usual ones.
        weights: option that names weights -> file, for those given.
        unlabeled: name of the images without labels; "" without any.
        own: NAME FILE [KEY VALUE ...] of each ``--own-start``.

    Raises:
        ValueError: for one that does not exist, or lacks its data or weights.
    """
    starts = {}
    for name in names or DEFAULT_STARTS:
        if name not in STARTS:
            raise ValueError(f"--starts has '{name}'; choose from {', '.join(STARTS)}.")
        start = STARTS[name]
        lacks = "--unlabeled" if start.needs_unlabeled and not unlabeled else ""
        if start.weights not in weights:
            lacks = f"--{start.weights.replace('_', '-')}"
        if not lacks:
            starts[name] = start
        elif names:
            raise ValueError(f"The start '{name}' ({start.title}) needs {lacks}.")
    return starts | dict(map(own_start, own))


def own_start(parts: Sequence[str]) -> tuple[str, Start]:
    """Name and start of an ``--own-start``.

    Raises:
        ValueError: if it is of another form, its name is taken, or there is no such file.
    """
    if len(parts) < 2 or len(parts) % 2:
        raise ValueError(f"--own-start {' '.join(parts)} must be NAME FILE [KEY VALUE ...].")
    name, file, *options = parts
    if name in STARTS or not name.replace("_", "").isalnum():
        raise ValueError(
            f"--own-start has the name '{name}'; take one of letters, digits and _ that is none of "
            f"{', '.join(STARTS)}."
        )
    if not os.path.isfile(file):
        raise ValueError(f"--own-start {name} names {file}, which does not exist.")
    return name, Start(name, weights=os.path.abspath(file), options=tuple(options), first_only=True)


def contestants_of(
    configs: Sequence[str], *, starts: dict[str, Start], pretrain_config: str | None, all_must_suit: bool
) -> list[Contestant]:
    """Every detector with every start that suits it, in the order of the starts.

    Args:
        configs: of the detectors; pre-training, COCO weights and own starts are those of the first.
        starts: by name.
        pretrain_config: in the place of the registry's.
        all_must_suit: whether a start that suits no detector is an error.

    Raises:
        ValueError: if a config cannot be used, or there is nothing to compare.
    """
    detectors = [recipe_name(config) for config in configs]
    if len(set(map(short_name, detectors))) < len(detectors):
        raise ValueError("--detectors names two configs of the same file name; rename one.")
    cfgs = {detector: read_config(detector) for detector in detectors}
    contestants = []
    for name, start in starts.items():
        if start.pretraining and pretrain_config:
            start = dataclasses.replace(start, pretraining={detectors[0]: pretrain_config})
        suited = [
            detector
            for detector, cfg in cfgs.items()
            if start.suits(
                detector,
                with_unlabeled=bool(task_of(cfg).with_unlabeled),
                first=detector == detectors[0],
            )
        ]
        if not suited and all_must_suit:
            raise ValueError(
                f"The start '{name}' ({start.title}) suits none of --detectors {', '.join(detectors)}."
            )
        contestants += [
            Contestant(
                detector,
                name,
                start,
                base_rate=cfgs[detector].SOLVER.BASE_LR,
                batch_size=cfgs[detector].SOLVER.IMS_PER_BATCH,
                proposals=proposals_of(start.pretraining[detector]) if start.pretraining else (),
            )
            for detector in suited
        ]
    if not contestants:
        raise ValueError("No start is left to compare; choose --starts.")
    return contestants


def proposals_of(config: str) -> tuple[str, ...]:
    """Options of ``updetr proposals`` for a pre-training on objects: boxes of features, in clusters if it asks.

    Args:
        config: of the pre-training.

    Returns:
        () if it learns random patches, or boxes of a file that it names.
    """
    cfg = read_config(config)
    if cfg.MODEL.META_ARCHITECTURE != "ObjectDETR" or cfg.INPUT.PROPOSALS.FILE:
        return ()
    options: tuple[str, ...] = ("--source", "features", "--boxes", str(cfg.INPUT.PROPOSALS.MAX_BOXES))
    if cfg.INPUT.PROPOSALS.CLUSTERS:
        options += ("--cluster", str(NUM_CLUSTERS), "--crop", str(cfg.INPUT.QUERY_PATCH.SIZE))
    return options


def iterations_of(config: str) -> int:
    """SOLVER.MAX_ITER of a config.

    Raises:
        ValueError: if it gives its schedule in epochs.
    """
    iterations = read_config(config).SOLVER.MAX_ITER
    if iterations < 1:
        raise ValueError(f"{config} gives its schedule in epochs; say how many --iterations.")
    return iterations

"""What the folder of a run tells about it: config, command, environment, metrics, results, pictures."""

import ast
import json
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import get_cfg

from updetr_d2.config import add_updetr_config
from updetr_d2.visualization.curves import read_metrics

_IMAGE_TYPES = (".png", ".jpg", ".jpeg")
_LOG_LINE = re.compile(r"^\[\d\d/\d\d \d\d:\d\d:\d\d\]")


@dataclass
class RunFolder:
    """A run of ``tools/train_net.py``, finished or not, of any task.

    Attributes:
        path: its OUTPUT_DIR.
        config: every key, such as "SOLVER.BASE_LR", with its value.
        arguments: of the last call of the command line; empty if the log does not tell.
        environment: versions and device as Detectron2 logs them, by name.
        curves: name of a metric -> {iteration: value}; empty if nothing has been logged.
        results: name of a data set -> name of a metric -> value of evaluations that wrote a file of them.
        pictures: folder, relative to ``path`` -> image files in it.
    """

    path: Path
    config: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, list[Path]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "RunFolder":
        """
        Args:
            path: OUTPUT_DIR of a run.

        Raises:
            ValueError: if there is no run.
        """
        path = Path(path)
        config_file = path / "config.yaml"
        if not config_file.is_file():
            raise ValueError(
                f"{path} is no OUTPUT_DIR of a run of tools/train_net.py: it has no config.yaml."
            )
        log = path / "log.txt"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        metrics = path / "metrics.json"
        return cls(
            path=path,
            config=flatten(yaml.safe_load(config_file.read_text(encoding="utf-8"))),
            arguments=_last_arguments(text),
            environment=_last_environment(text),
            curves=read_metrics(metrics) if metrics.is_file() and metrics.stat().st_size else {},
            results=_read_results(path / "inference"),
            pictures=_find_pictures(path),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric of evaluation; those of training runs go before those of files."""
        last = {name: list(points.values())[-1] for name, points in self.curves.items() if "/" in name}
        if last:
            return last
        several = len(self.results) > 1
        return {
            f"{dataset}/{name}" if several else name: value
            for dataset, values in self.results.items()
            for name, value in values.items()
        }

    @property
    def iterations_done(self) -> int:
        # Losses are logged under the number of their iteration, from 0; evaluations under that of the next.
        return max((max(points) for name, points in self.curves.items() if "/" not in name), default=-1) + 1

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if self.arguments.get("eval_only") and not self.curves:
            return "evaluation only"
        planned = self.config.get("SOLVER.MAX_ITER", 0)
        if (self.path / "model_final.pth").exists():
            return f"finished: {planned} iterations"
        return f"unfinished: {min(self.iterations_done, planned)} of {planned} iterations"

    @property
    def command(self) -> str | None:
        """The command line that repeats the run, None if the log does not tell."""
        if not self.arguments.get("config_file"):
            return None
        parts = ["python", "tools/train_net.py", "--config-file", self.arguments["config_file"]]
        for name in ("num_gpus", "num_machines"):
            if self.arguments.get(name, 1) != 1:
                parts += [f"--{name.replace('_', '-')}", str(self.arguments[name])]
        if self.arguments.get("eval_only"):
            parts.append("--eval-only")
        return shlex.join([*parts, *map(str, self.arguments.get("opts") or [])])

    def recipe(self, root: Path) -> dict[str, Any] | None:
        """Every key as the recipe of the command line sets it.

        Args:
            root: folder that the name of the recipe is relative to.

        Returns:
            the keys; None if the recipe is not there any more or does not fit this version.
        """
        name = self.arguments.get("config_file")
        if not name or not (root / name).is_file():
            return None
        cfg = get_cfg()
        add_updetr_config(cfg)
        try:
            cfg.merge_from_file(str(root / name))
        except (AssertionError, KeyError, ValueError):
            return None
        return flatten(yaml.safe_load(cfg.dump()))


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one with names such as "MODEL.DETR.NHEADS", sorted."""
    flat: dict[str, Any] = {}
    for name, value in sorted(values.items()):
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(config: dict[str, object], base: dict[str, object]) -> list[tuple[str, object, object]]:
    """Name, value in ``base`` (None if it has none) and value in ``config`` of the keys that differ.

    Keys that only ``base`` has came with a later version; the run knew nothing of them.
    """
    return [(name, base.get(name), value) for name, value in config.items() if base.get(name) != value]


def _last_arguments(log: str) -> dict[str, object]:
    """The arguments in the last "Command line arguments: Namespace(...)" of a log."""
    found = re.findall(r"Command line arguments: (Namespace\(.*\))$", log, flags=re.MULTILINE)
    try:
        call = ast.parse(found[-1], mode="eval").body
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (IndexError, SyntaxError, ValueError):
        return {}


def _last_environment(log: str) -> dict[str, str]:
    """The table under the last "Environment info:" of a log."""
    _, found, rest = log.rpartition("Environment info:\n")
    environment = {}
    for line in rest.splitlines() if found else ():
        if _LOG_LINE.match(line) or line.startswith("PyTorch built with"):
            break
        name, _, value = line.partition("  ")
        if value.strip() and not line.startswith("-"):
            environment[name.strip()] = value.strip()
    return environment


def _read_results(folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of the ``*_results.json`` files of evaluators below ``inference``; lists of boxes are left out."""
    results: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*/*_results.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            numbers = {name: value for name, value in content.items() if isinstance(value, (int, float))}
            results.setdefault(file.parent.name, {}).update(numbers)
    return results


def _find_pictures(path: Path) -> dict[str, list[Path]]:
    """The image files of a run by folder; of the folders of iterations, the last one."""
    files = (file for file in path.rglob("*") if file.suffix.lower() in _IMAGE_TYPES)
    folders: dict[str, list[Path]] = {}
    for file in sorted(files, key=lambda file: (file.parent, len(file.name), file.name)):
        folders.setdefault(str(file.parent.relative_to(path)), []).append(file)
    iterations = [name for name in folders if Path(name).name.startswith("iteration_")]
    for name in iterations[:-1]:
        del folders[name]
    return folders


def is_number(value: object) -> bool:
    """Whether a metric has a value: COCO's are NaN where there is nothing to measure."""
    return isinstance(value, (int, float)) and not math.isnan(value)

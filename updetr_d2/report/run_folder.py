"""What the folder of a run tells about it: config, command, environment, metrics, results, pictures.

The folder may be damaged, or come from others: what cannot be read is named, the rest is used.
"""

import ast
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import get_cfg

from updetr_d2.checkpoint.run_files import EARLIER_RUN
from updetr_d2.config import add_updetr_config
from updetr_d2.config.files import merge_config_file, refuse_alias_bomb
from updetr_d2.config.flat import flat_config, flatten
from updetr_d2.evaluation.error_report import ERRORS_FILE, PICTURES_FOLDER
from updetr_d2.report.errors import ErrorAnalysis
from updetr_d2.visualization.curves import fits_float, read_metrics

_IMAGE_TYPES = (".png", ".jpg", ".jpeg")
_LOG_LINE = re.compile(r"^\[\d\d/\d\d \d\d:\d\d:\d\d\]")


@dataclass
class RunFolder:
    """A run of ``updetr train``, finished or not, of any task.

    Attributes:
        path: its OUTPUT_DIR.
        config: every key, such as "SOLVER.BASE_LR", with its value.
        arguments: of the last call of the command line; empty if the log does not tell.
        environment: versions and device as Detectron2 logs them, by name.
        curves: name of a metric -> {iteration: value}; empty if nothing has been logged.
        results: name of a data set -> name of a metric -> value of evaluations that wrote a file of them.
        analyses: folder of an evaluation, relative to ``path`` -> what a detector did wrong there.
        pictures: folder, relative to ``path`` -> image files in it; without those of ``analyses``.
        problems: what could not be read, in a sentence each.
    """

    path: Path
    config: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    analyses: dict[str, ErrorAnalysis] = field(default_factory=dict)
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

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
            raise ValueError(f"{path} is no OUTPUT_DIR of a run of `updetr train`: it has no config.yaml.")
        problems: list[str] = []
        text = _read_if_possible(path / "log.txt", _read_log, "", problems)
        return cls(
            path=path,
            config=_read_if_possible(config_file, _read_config, {}, problems),
            arguments=_last_arguments(text),
            environment=_last_environment(text),
            curves=_read_if_possible(path / "metrics.json", read_metrics, {}, problems),
            results=_read_results(path / "inference", problems),
            analyses=_read_analyses(path, problems),
            pictures={
                folder: files
                for folder, files in _find_pictures(path).items()
                if Path(folder).parent.name != PICTURES_FOLDER
            },
            problems=problems,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric: that of the training, unless an evaluation alone came after it."""
        last = {name: list(points.values())[-1] for name, points in self.curves.items() if "/" in name}
        if last and not (self.evaluation_only and self.results):
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
    def evaluation_only(self) -> bool:
        """Whether the last call in the folder was with ``--eval-only``."""
        return bool(self.arguments.get("eval_only"))

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if self.evaluation_only and not self.curves:
            return "evaluation only"
        planned = self.config.get("SOLVER.MAX_ITER")
        if not isinstance(planned, int):
            return f"{self.iterations_done} iterations"
        if (self.path / "model_final.pth").exists():
            return f"finished: {planned} iterations"
        return f"unfinished: {min(self.iterations_done, planned)} of {planned} iterations"

    @property
    def command(self) -> str | None:
        """The command line that repeats the run, None if the log does not tell."""
        name, options = self.arguments.get("config_file"), self.arguments.get("opts") or []
        if not name or not isinstance(name, str) or not isinstance(options, list):
            return None
        parts = ["updetr", "train", "--config-file", name]
        for name in ("num_gpus", "num_machines"):
            if self.arguments.get(name, 1) != 1:
                parts += [f"--{name.replace('_', '-')}", str(self.arguments[name])]
        if self.arguments.get("eval_only"):
            parts.append("--eval-only")
        return shlex.join([*parts, *map(str, options)])

    def recipe(self, configs: Path) -> dict[str, Any] | None:
        """Every key as the recipe of the command line sets it.

        Args:
            configs: the folder of the recipes. The name comes from the log, which others may have written: no
                file elsewhere is read.

        Returns:
            the keys; None if the recipe is not in the folder (any more) or does not fit this version.
        """
        name = self.arguments.get("config_file")
        if not isinstance(name, str):
            return None
        cfg = get_cfg()
        add_updetr_config(cfg)
        try:
            path = (configs / name.removeprefix("configs/")).resolve()
            if not path.is_relative_to(configs.resolve()):
                return None
            merge_config_file(cfg, str(path))
        except (OSError, ValueError):
            return None
        return flat_config(cfg)


def differences(config: dict[str, object], base: dict[str, object]) -> list[tuple[str, object, object]]:
    """Name, value in ``base`` (None if it has none) and value in ``config`` of the keys that differ.

    Keys that only ``base`` has came with a later version; the run knew nothing of them.
    """
    return [(name, base.get(name), value) for name, value in config.items() if base.get(name) != value]


def _read_if_possible(path: Path, read: Callable[[Path], Any], default: Any, problems: list[str]) -> Any:
    """What ``read`` makes of a file; ``default`` without one, and with one more problem if it fails."""
    if not path.is_file() or not path.stat().st_size:
        return default
    try:
        return read(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())}).")
        return default


def _read_log(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_config(path: Path) -> dict[str, object]:
    text = path.read_text(encoding="utf-8")
    refuse_alias_bomb(text, path.name)
    config = yaml.safe_load(text)
    if not isinstance(config, dict):
        raise ValueError("it has no keys with values")
    return flatten(config)


def _last_arguments(log: str) -> dict[str, object]:
    """The arguments in the last "Command line arguments: Namespace(...)" of a log."""
    found = re.findall(r"Command line arguments: (Namespace\(.*\))$", log, flags=re.MULTILINE)
    try:
        call = ast.parse(found[-1], mode="eval").body
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (IndexError, SyntaxError, ValueError, TypeError, AttributeError, MemoryError, RecursionError):
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


def _read_results(folder: Path, problems: list[str]) -> dict[str, dict[str, float]]:
    """Metrics of the ``*_results.json`` files of evaluators below ``inference``; lists of boxes are left out."""
    results: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*/*_results.json")):
        content = _read_if_possible(file, lambda path: json.loads(path.read_text("utf-8")), None, problems)
        if isinstance(content, dict):
            task = file.stem.removesuffix("_results")
            numbers = {f"{task}/{name}": value for name, value in content.items() if fits_float(value)}
            results.setdefault(file.parent.name, {}).update(numbers)
    return results


def _read_analyses(path: Path, problems: list[str]) -> dict[str, ErrorAnalysis]:
    """Of the evaluations of the weights, and of their average."""
    found = {}
    files = [*path.glob(f"inference/*/{ERRORS_FILE}"), *path.glob(f"*/inference/*/{ERRORS_FILE}")]
    for file in sorted(file for file in files if not _of_earlier_run(file, path)):
        analysis = _read_if_possible(file, ErrorAnalysis.read, None, problems)
        if analysis is not None:
            found[str(file.parent.relative_to(path))] = analysis
    return found


def _find_pictures(path: Path) -> dict[str, list[Path]]:
    """The image files of a run by folder; of the folders of iterations, the last one."""
    files = (
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _IMAGE_TYPES and file.is_file() and not _of_earlier_run(file, path)
    )
    folders: dict[str, list[Path]] = {}
    for file in sorted(files, key=lambda file: (file.parent, len(file.name), file.name)):
        folders.setdefault(str(file.parent.relative_to(path)), []).append(file)
    iterations = [name for name in folders if Path(name).name.startswith("iteration_")]
    for name in iterations[:-1]:
        del folders[name]
    return folders


def _of_earlier_run(file: Path, path: Path) -> bool:
    return file.relative_to(path).parts[0].startswith(EARLIER_RUN)


def is_number(value: object) -> bool:
    """Whether a metric has a value: COCO's are NaN where there is nothing to measure."""
    return isinstance(value, (int, float)) and not math.isnan(value)

"""The services of ``TRACKING.WRITERS``: Weights & Biases and MLflow, by their own packages (extras of setup)."""

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from updetr_d2.engine.tracking import Tracker

_Item = TypeVar("_Item")
# MLflow's limits.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_VALUE = 1000, 100, 500


class PackageTracker(Tracker):
    """A service with a Python package of its own.

    Args:
        project, run_name: as the service shows them.
        output_dir: of the run, for files of the service.
        config: every key of the run.
        offline: send nothing.
    """

    def __init__(
        self, *, project: str, run_name: str, output_dir: str, config: Mapping[str, Any], offline: bool
    ) -> None:
        self.project = project
        self.run_name = run_name
        self.output_dir = output_dir
        self.config = dict(config)
        self.offline = offline


class WandbTracker(PackageTracker):
    """Weights & Biases; offline, the files are in ``wandb/`` of the output folder, for ``wandb sync``.

    Args: as for :class:`PackageTracker`.
    """

    name = "wandb"
    _run: Any = None

    def start(self, run_id: str | None) -> str:
        import wandb

        self._run = wandb.init(
            project=self.project,
            name=self.run_name,
            dir=self.output_dir,
            id=run_id or uuid.uuid4().hex,
            resume="allow",
            config=self.config,
            mode="offline" if self.offline else None,
        )
        # Iterations that a resumed training repeats are before the last one, which W&B's own steps may not be.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return str(self._run.id)

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **scalars})

    def finish(self) -> None:
        self._run.finish()


class MLflowTracker(PackageTracker):
    """MLflow at ``MLFLOW_TRACKING_URI``; offline in ``mlflow.db`` of the output folder.

    Args: as for :class:`PackageTracker`; the project is MLflow's experiment.
    """

    name = "mlflow"
    _client: Any = None
    _run_id = ""

    def start(self, run_id: str | None) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        folder = os.path.abspath(self.output_dir)
        # Its folders of files are no longer kept up by MLflow.
        uri = f"sqlite:///{folder}/mlflow.db" if self.offline else None
        self._client = MlflowClient(tracking_uri=uri)
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
            return run_id
        experiment = self._client.get_experiment_by_name(self.project)
        experiment_id = (
            self._client.create_experiment(
                self.project, artifact_location=f"{folder}/mlflow" if self.offline else None
            )
            if experiment is None
            else experiment.experiment_id
        )
        self._run_id = str(self._client.create_run(experiment_id, run_name=self.run_name).info.run_id)
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in self.config.items()]
        for part in _parts(params, _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=part)
        return self._run_id

    def log(self, iteration: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(metric_name(name), value, now, iteration) for name, value in scalars.items()]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=part)

    def finish(self) -> None:
        self._client.set_terminated(self._run_id)


# By the names of TRACKING.WRITERS, which are those of the packages as well.
TRACKERS: dict[str, type[PackageTracker]] = {
    tracker.name: tracker for tracker in (WandbTracker, MLflowTracker)
}


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. /``, as a relative path."""
    return re.sub(r"/{2,}", "/", re.sub(r"[^\w\-. /]", "_", name)).strip("/")


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

"""Batches of labeled and unlabeled images, from two streams that each go on exactly where they were."""

from collections.abc import Iterator

from updetr_d2.data.loading.build import TrainLoader
from updetr_d2.data.loading.samples import SkippedFiles


class PairedLoader:
    """Labeled images first, then the unlabeled ones of the same batch.

    Args:
        labeled, unlabeled: endless batches of their samples.
        burn_in: so many batches at the start have labeled images alone.
    """

    def __init__(self, labeled: TrainLoader, unlabeled: TrainLoader, *, burn_in: int = 0) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.burn_in = burn_in
        self._num_batches = 0

    @property
    def seed(self) -> int:
        return self.labeled.seed

    @property
    def skipped_files(self) -> SkippedFiles:
        return SkippedFiles.merge([self.labeled.skipped_files, self.unlabeled.skipped_files])

    def state_dict(self) -> dict:
        """Where both streams stand after the last batch that was given out."""
        return {
            "labeled": self.labeled.state_dict(),
            "unlabeled": self.unlabeled.state_dict(),
            "num_batches": self._num_batches,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`, or from that of a run that had labeled images alone."""
        if "labeled" not in state:
            self.labeled.load_state_dict(state)
            return
        self.labeled.load_state_dict(state["labeled"])
        self.unlabeled.load_state_dict(state["unlabeled"])
        self._num_batches = state["num_batches"]

    def __iter__(self) -> Iterator[list[dict]]:
        # No loader process for unlabeled images starts before the first of them is wanted.
        labeled, unlabeled = iter(self.labeled), iter(self.unlabeled)
        while True:
            batch = next(labeled)
            if self._num_batches >= self.burn_in:
                batch = batch + next(unlabeled)
            self._num_batches += 1
            yield batch

"""The place of a training run in its data, for checkpoints."""

from collections.abc import Iterator
from typing import Protocol

from updetr_d2.data.loading.samples import SkippedFiles


class BatchLoader(Protocol):
    """What a training run needs of its loader: endless batches, and a place in them that can be saved."""

    @property
    def seed(self) -> int:
        """Of the random numbers, the same in all processes."""

    @property
    def skipped_files(self) -> SkippedFiles:
        """Files of the batches so far that could not be used."""

    def state_dict(self) -> dict:
        """Where the stream stands after the last batch that was given out."""

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict` with the next ``iter()``."""

    def __iter__(self) -> Iterator[list[dict]]: ...


def furthest_state(states: list[dict]) -> dict:
    """From the states of all processes of a run, the one that another number of processes goes on with."""
    first = states[0]
    if "next_position" in first:
        furthest = max(state["next_position"] for state in states)
        return {**first, "next_position": furthest, "pending": []}
    return {
        key: furthest_state([state[key] for state in states]) if isinstance(value, dict) else value
        for key, value in first.items()
    }

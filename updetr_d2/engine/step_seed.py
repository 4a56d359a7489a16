"""The random numbers of a training step."""

import numpy as np
import torch


def seed_step(seed: int, rank: int, iteration: int) -> None:
    """Make dropout, query masks and shuffles a function of the run's seed, the process and the step.

    A resumed run then goes on as if it had never stopped, without generator states in the checkpoint.
    """
    key = np.random.SeedSequence((seed, rank, iteration))
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

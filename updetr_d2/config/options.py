"""KEY VALUE options of a command line, and what to say of a key that does not exist."""

import difflib
import re
from collections.abc import Sequence

from detectron2.config import CfgNode

from updetr_d2.config.flat import flatten


def merge_options(cfg: CfgNode, options: Sequence) -> None:
    """Merge alternating keys and values, as they stand on a command line.

    Args:
        cfg: changed in place.
        options: alternating keys and values.

    Raises:
        ValueError: for a key that does not exist, with similar ones, a value of another type, or a key without a
            value.
    """
    try:
        cfg.merge_from_list(list(options))
    except ValueError as error:  # yacs's, of a value of another type
        if "tuple" not in str(error):
            raise
        raise ValueError(
            f"{error}; a tuple of one name has a comma: DATASETS.TRAIN \"('NAME',)\"."
        ) from error
    except (AssertionError, KeyError) as error:  # yacs's, of keys
        raise ValueError(
            f"The options {' '.join(map(str, options))} are not KEY VALUE pairs: "
            f"{with_similar_keys(cfg, str(error.args[0]))}"
        ) from error


def with_similar_keys(cfg: CfgNode, problem: str) -> str:
    """A message of yacs; of one about a key that does not exist, with the keys that are most like it."""
    unknown = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", problem)
    similar = difflib.get_close_matches(unknown[1], flatten(cfg), n=3, cutoff=0.75) if unknown else []
    return f"{problem}; similar to {unknown[1]}: {', '.join(similar)}" if unknown and similar else problem

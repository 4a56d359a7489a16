"""KEY VALUE options of a command line, and what to say of a key that does not exist."""

import difflib
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
        pairs = options if len(options) % 2 == 0 else ()
        unknown = [key for key in map(str, pairs[::2]) if key not in flatten(cfg)]
        raise ValueError(
            f"The options {' '.join(map(str, options))} are not KEY VALUE pairs: {error.args[0]}"
            f"{''.join(similar_keys(cfg, key) for key in unknown)}"
        ) from error


def similar_keys(cfg: CfgNode, key: str) -> str:
    """What to add to a message about a key that does not exist; "" if no other is like it."""
    similar = difflib.get_close_matches(key, list(flatten(cfg)), n=3, cutoff=0.75)
    return f"; similar to {key}: {', '.join(similar)}" if similar else ""

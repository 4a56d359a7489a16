"""Configs as one level of keys, to be compared and kept."""

from typing import Any

import yaml
from detectron2.config import CfgNode


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one with names such as "MODEL.DETR.NHEADS", sorted."""
    flat: dict[str, Any] = {}
    for name, value in sorted(values.items(), key=lambda item: str(item[0])):
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def flat_config(cfg: CfgNode) -> dict[str, Any]:
    """Every key of a config with its value, as its file would give it back: tuples are lists."""
    return flatten(yaml.safe_load(cfg.dump()))

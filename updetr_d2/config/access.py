"""Read a key of a config by its dotted name, and change a config that may be frozen."""

from typing import Any

from detectron2.config import CfgNode


def get_value(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as "MODEL.DETR.NUM_CLASSES"."""
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node


def changed(cfg: CfgNode, options: list) -> CfgNode:
    """A copy of a config with other values, frozen if ``cfg`` is.

    Args:
        cfg: stays as it is.
        options: alternating keys and values.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(options)
    if frozen:
        cfg.freeze()
    return cfg

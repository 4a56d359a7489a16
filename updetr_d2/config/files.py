"""The recipes in ``configs/``, which an installed package brings along."""

import difflib
import os
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from updetr_d2.config.defaults import add_updetr_config

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the recipes are inside the package, in a checkout beside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def get_config_file(name: str) -> str:
    """Path of a recipe.

    Args:
        name: relative to ``configs/``, such as "voc/updetr_r50_voc_150ep.yaml".

    Raises:
        ValueError: if there is no such recipe, with those of similar names.
    """
    name = name.removeprefix("configs/")
    recipes = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    if name not in recipes:
        similar = difflib.get_close_matches(name, recipes, n=5, cutoff=0.3)
        raise ValueError(f"There is no config '{name}'; similar ones: {', '.join(similar) or 'none'}.")
    return str(CONFIGS / name)


def get_config(name: str) -> CfgNode:
    """A recipe as a config with Detectron2's keys and those of updetr_d2, not frozen.

    Args:
        name: as for :func:`get_config_file`.

    Raises:
        ValueError: if there is no such recipe.
    """
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg


def find_config_file(path: str) -> str:
    """The file of ``--config-file``: ``path`` itself or, if there is no such file, the recipe of that name.

    Raises:
        ValueError: if there is neither.
    """
    return path if os.path.exists(path) or "://" in path else get_config_file(path)

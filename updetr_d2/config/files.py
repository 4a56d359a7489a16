"""Config files, read without running code from them; the recipes in ``configs/`` that the package brings along."""

import difflib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from detectron2.config import CfgNode, get_cfg

from updetr_d2.config.defaults import add_updetr_config
from updetr_d2.config.options import merge_options, with_similar_keys
from updetr_d2.utils.files import refuse_special_file

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
        raise ValueError(
            f"{name}: there is no such config file, and no recipe of that name; similar ones: "
            f"{', '.join(similar) or 'none'}."
        )
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
    merge_config_file(cfg, get_config_file(name))
    return cfg


# A config has some hundred values, and some kilobytes.
_MAX_YAML_NODES = 100_000
_MAX_YAML_CHARACTERS = 4_000_000


def refuse_alias_bomb(text: str, name: str) -> None:
    """Make sure that a YAML file is no larger in memory than a config may be.

    Aliases of aliases (``[*a, *a]``) double what they stand for with every line; whoever prints or copies the
    values goes through all of them.

    Args:
        text: of the file.
        name: of the file, for the message.

    Raises:
        ValueError: if it has too many characters, or values once its aliases are written out.
    """
    if len(text) > _MAX_YAML_CHARACTERS:
        raise ValueError(f"{name} has more than {_MAX_YAML_CHARACTERS} characters, which no config needs.")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _num_nodes(root, {}) > _MAX_YAML_NODES:
        raise ValueError(
            f"the aliases of {name} stand for more than {_MAX_YAML_NODES} values, or for themselves."
        )


def _num_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of nodes below a node with its aliases written out; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known: whoever asks now is inside of it
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = (each for entry in below for each in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1.0 + sum(_num_nodes(child, known) for child in children)
    return known[id(node)]


class _RefusingConfig(CfgNode):
    """Opens regular files without alias bombs only, those named by ``_BASE_`` included, which may be recipes."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        if "://" not in filename and not os.path.exists(filename):
            filename = _named_recipe(filename) or filename
        return super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        refuse_special_file(filename)
        with super()._open_cfg(filename) as file:
            text = file.read(_MAX_YAML_CHARACTERS + 1)
        refuse_alias_bomb(text, filename)
        return io.StringIO(text)


def _named_recipe(path: str) -> str | None:
    """The recipe that ``_BASE_`` names; before its name, ``path`` has the folder of the file that says so."""
    parts = Path(path).parts
    names = ("/".join(parts[begin:]) for begin in range(len(parts)))
    return next((str(CONFIGS / name) for name in names if (CONFIGS / name).is_file()), None)


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merge a config file, and those that its ``_BASE_`` names, without ever running code from them.

    ``CfgNode.merge_from_file`` alone loads what safe YAML refuses with unsafe YAML, which calls any function that
    the file names; it gets what safe YAML has read.

    Args:
        cfg: extended in place.
        path: of the file, or a URL that Detectron2's ``PathManager`` understands.

    Raises:
        ValueError: if there is no such file, it is not plain YAML, or a key or value is wrong.
    """
    try:
        values = _RefusingConfig.load_yaml_with_base(path)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            yaml.safe_dump(values, file)
            file.flush()
            cfg.merge_from_file(file.name, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"The config {path} was not loaded: {error.problem}, and only plain values are read from configs."
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"The config {path} is not YAML ({problem}).") from error
    except OSError as error:
        raise ValueError(f"{path}: the config cannot be read ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"The config {path} names itself as its _BASE_, or is nested too deeply.") from error
    except (TypeError, AttributeError) as error:  # a list or a number where keys with values should be
        raise ValueError(f"The config {path} is no list of KEY: VALUE ({error}).") from error
    except (
        AssertionError,
        KeyError,
        ValueError,
    ) as error:  # Detectron2's and yacs's: of keys and their values
        raise ValueError(f"{path}: {with_similar_keys(cfg, str(error.args[0]))}") from error


def find_config_file(path: str) -> str:
    """The file of ``--config-file``: ``path`` itself or, if there is no such file, the recipe of that name.

    Raises:
        ValueError: if there is neither.
    """
    return path if os.path.exists(path) or "://" in path else get_config_file(path)


def read_config(config_file: str, options: Sequence = ()) -> CfgNode:
    """A config file with the options of a command line, not frozen; nothing else of it is checked.

    Args:
        config_file: as for :func:`find_config_file`.
        options: alternating keys and values.

    Raises:
        ValueError: if there is no such file, or a key or value is wrong.
    """
    cfg = get_cfg()
    add_updetr_config(cfg)
    merge_config_file(cfg, find_config_file(config_file))
    merge_options(cfg, options)
    return cfg

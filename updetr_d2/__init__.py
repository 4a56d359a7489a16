"""UP-DETR as a Detectron2 plugin: unsupervised pre-training of detection transformers.

Importing the package registers its models, backbones and data sets with Detectron2.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "updetr_d2 needs Detectron2, which pip cannot find by that name: install it as "
        "https://detectron2.readthedocs.io/tutorials/install.html says, or run `make setup`."
    ) from error

from updetr_d2 import data, modeling  # noqa: F401  (registration)
from updetr_d2.config import add_updetr_config

__version__ = "0.2.0"
__all__ = ["add_updetr_config"]

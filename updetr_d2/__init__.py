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

from updetr_d2 import data, modeling, tasks  # noqa: F401  (registration)
from updetr_d2.config import add_updetr_config
from updetr_d2.config.files import get_config, get_config_file
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.inference.predictor import Predictor
from updetr_d2.tasks import build_evaluator, build_mapper, build_test_loader

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "UPDETRTrainer",
    "UnusableImageError",
    "__version__",
    "add_updetr_config",
    "build_evaluator",
    "build_mapper",
    "build_test_loader",
    "ensure_registered",
    "get_config",
    "get_config_file",
    "read_image_rgb",
]

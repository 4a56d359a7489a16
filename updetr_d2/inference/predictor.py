"""From a run, or a config and a checkpoint, to a model that takes images: for users, demos and export."""

import logging
import os
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from PIL import Image
from torch import nn

from updetr_d2.checkpoint import run_files
from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.config.access import get_value
from updetr_d2.config.build import build_model
from updetr_d2.config.files import read_config
from updetr_d2.data.dataset_mappers.oneshot import cut_patch
from updetr_d2.data.datasets.classes import check_trained_classes
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.transforms.image_io import read_image_rgb, stack_to_tensor, to_tensor
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.data.transforms.resize import DETRResize
from updetr_d2.inference.results import Prediction
from updetr_d2.modeling.fast.optimize import optimize_frozen
from updetr_d2.tasks import check_config, task_of
from updetr_d2.tasks.findings import Findings, PredictedClasses

logger = logging.getLogger(__name__)

# An image as users have it: path, PIL image or RGB uint8 [H, W, 3].
ImageLike = str | os.PathLike | Image.Image | np.ndarray


def setup_inference_config(config_file: str, options: Sequence) -> CfgNode:
    """Read and check a config; its data sets are used for their class names only and may be missing.

    Args:
        config_file: a file such as the ``config.yaml`` that a run has written, or the name of a recipe.
        options: alternating keys and values that override it.

    Returns:
        the frozen config.

    Raises:
        ValueError: for a wrong key or value, or if the number of classes is 0 (take it from the data set)
            and the data set is not there.
    """
    cfg = read_config(config_file, options)
    check_config(cfg)
    task = task_of(cfg)
    key = task.num_classes_key(cfg)
    if key is not None and get_value(cfg, key) == 0:
        try:
            if not cfg.DATASETS.TEST:
                raise ValueError("it is empty")
            ensure_registered(cfg.DATASETS.TEST[:1])
            cfg = task.derive_num_classes(cfg, cfg.DATASETS.TEST[:1])
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{key} is 0 and cannot be taken from DATASETS.TEST ({error}): set it, or use the config.yaml in "
                "the OUTPUT_DIR of the training."
            ) from error
    cfg.freeze()
    return cfg


def load_trained_model(cfg: CfgNode) -> nn.Module:
    """Build the model in evaluation mode and fill all of it from ``MODEL.WEIGHTS``.

    Raises:
        ValueError: if the checkpoint does not hold every parameter: random ones would find nothing.
    """
    return _load_checkpoint(cfg).model


def _load_checkpoint(cfg: CfgNode) -> UPDETRCheckpointer:
    """As :func:`load_trained_model`, with what the checkpoint says of itself."""
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; add MODEL.WEIGHTS and the checkpoint of a trained model.")
    model = optimize_frozen(build_model(cfg), fuse=cfg.MODEL.FUSE_FROZEN).eval()
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.averaged = cfg.MODEL.EMA_WEIGHTS
    checkpointer.load(cfg.MODEL.WEIGHTS)
    if missing := checkpointer.parameters_not_loaded():
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is no trained {cfg.MODEL.META_ARCHITECTURE} of this config: it "
            f"lacks {len(missing)} parameters, such as {missing[0]}."
        )
    return checkpointer


class Predictor:
    """A trained model that takes images and, if it looks for them, query patches.

    >>> predictor = Predictor.from_run("output/finetune")
    >>> found = predictor("photo.jpg", threshold=0.5)
    >>> for box, label in zip(found.instances.pred_boxes, found.instances.pred_classes):
    ...     print(found.class_names[label], box.tolist())

    Args:
        cfg: config with the weights to load.

    Attributes:
        cfg: the config.
        task: the task of the model.
        model: in evaluation mode.
        classes: names and ids of what it predicts.

    Raises:
        ValueError: if the checkpoint does not hold every parameter.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.task = task_of(cfg)
        checkpointer = _load_checkpoint(cfg)
        self.model = checkpointer.model
        self.classes = self.task.predicted_classes(cfg)
        if self.task.num_classes_key(cfg):
            self._name_classes(checkpointer.trained_classes)
        self._resize = DETRResize.from_config(cfg, is_train=False)

    def _name_classes(self, trained: Sequence[str]) -> None:
        """Take the names from the checkpoint where the data set is not there; both must agree."""
        if self.classes.names:
            check_trained_classes(trained, self.cfg.DATASETS.TEST[0], weights=self.cfg.MODEL.WEIGHTS)
        elif trained:
            self.classes = PredictedClasses(
                names=list(trained), metadata=Metadata(thing_classes=list(trained))
            )
        else:
            logger.warning(
                "Classes have numbers instead of names: the checkpoint tells none, DATASETS.TEST %s is not there.",
                tuple(self.cfg.DATASETS.TEST),
            )

    @classmethod
    def from_run(cls, folder: str | os.PathLike, *, options: Sequence = ()) -> "Predictor":
        """The model that a run of ``updetr train`` has trained: the final one, or the last checkpoint.

        Args:
            folder: the run's OUTPUT_DIR.
            options: alternating keys and values over those of the run, such as ``["MODEL.DEVICE", "cpu"]``.

        Raises:
            ValueError: if the folder holds no run or no checkpoint.
        """
        config_file = os.path.join(folder, "config.yaml")
        if not os.path.isfile(config_file):
            raise ValueError(f"{folder} is no OUTPUT_DIR of a run of `updetr train`: it has no config.yaml.")
        return cls.from_config(config_file, weights=_trained_weights(folder), options=options)

    @classmethod
    def from_config(
        cls, config: str | os.PathLike, *, weights: str | os.PathLike, options: Sequence = ()
    ) -> "Predictor":
        """A model from its config and weights.

        Args:
            config: path of a config file, or name of a recipe such as "voc/updetr_r50_voc_150ep.yaml".
            weights: the checkpoint of the trained model.
            options: alternating keys and values over those of the config.

        Raises:
            ValueError: if a key or value is wrong, or the checkpoint is of another model.
        """
        return cls(setup_inference_config(os.fspath(config), [*options, "MODEL.WEIGHTS", str(weights)]))

    @overload
    def __call__(
        self,
        images: ImageLike,
        patches: np.ndarray | Sequence[ImageLike] | None = None,
        threshold: float = 0.0,
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: list[ImageLike],
        patches: np.ndarray | Sequence[ImageLike] | None = None,
        threshold: float = 0.0,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        images: ImageLike | list[ImageLike],
        patches: np.ndarray | Sequence[ImageLike] | None = None,
        threshold: float = 0.0,
    ) -> Prediction | list[Prediction]:
        """What the model finds.

        Args:
            images: a path, PIL image or RGB uint8 array ``[H, W, 3]``, or a list of them.
            patches: query patches to look for in each image, for models that do: images of any size, or RGB
                uint8 ``[m, h, w, 3]``.
            threshold: lowest score of ``instances``, in [0, 1].

        Returns:
            the prediction for the image, or a list of them for a list. For a UPDETR the best instance of each
            patch goes first, as long as none is below the threshold.

        Raises:
            UnusableImageError: if a file cannot be read.
            ValueError: if the model needs query patches and there are none, or takes none; for arrays of
                another type or shape.
        """
        patches = self._check_patches(patches)
        if isinstance(images, list):
            return [self._predict(each, patches, threshold) for each in images]
        return self._predict(images, patches, threshold)

    def find(
        self,
        image: np.ndarray,
        *,
        threshold: float,
        patches: np.ndarray | None = None,
        picture_scale: float = 1.0,
    ) -> Findings:
        """What the model finds, with pictures of it.

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            threshold: lowest score of what is shown, in [0, 1].
            patches: RGB uint8 ``[m, h, w, 3]``, for models that look for query patches.
            picture_scale: size of the pictures relative to the image.
        """
        return self.task.findings(
            self(image, patches),
            image,
            classes=self.classes,
            threshold=threshold,
            patches=patches,
            picture_scale=picture_scale,
        )

    @torch.no_grad()
    def _predict(self, image: ImageLike, patches: np.ndarray | None, threshold: float) -> Prediction:
        image = as_rgb(image, ReadOptions.from_config(self.cfg))
        resized = T.AugInput(image)
        self._resize(resized)
        image_format = self.cfg.INPUT.FORMAT
        height, width = image.shape[:2]
        sample = {"image": to_tensor(resized.image, image_format), "height": height, "width": width}
        if patches is not None:
            sample["patches"] = stack_to_tensor(patches, image_format)
        output = dict(self.model([sample])[0])
        if "instances" in output:
            instances = output["instances"].to("cpu")
            output["instances"] = instances[instances.scores >= threshold]
        categories = self.classes.categories(getattr(self.model, "num_classes", 0))
        return Prediction(output, class_names=[category["name"] for category in categories])

    def _check_patches(self, patches: np.ndarray | Sequence[ImageLike] | None) -> np.ndarray | None:
        needs, name = self.task.query_patches(self.cfg), self.cfg.MODEL.META_ARCHITECTURE
        if needs is None:
            if patches is not None:
                raise ValueError(f"A {name} finds the classes it has learnt; call it without patches.")
            return None
        if patches is None or not len(patches):
            raise ValueError(
                f"A {name} looks for query patches: call it with patches=[...], images of what to find."
            )
        if isinstance(patches, np.ndarray) and patches.ndim == 4:
            return patches
        options = ReadOptions.from_config(self.cfg)
        return np.stack([cut_query_patch(as_rgb(patch, options), None, self.cfg) for patch in patches])


def as_rgb(image: ImageLike, options: ReadOptions) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a path, which is read by ``options``, a PIL image or such an array.

    Raises:
        UnusableImageError: if a file cannot be read.
        ValueError: for an array of another type or shape.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image_rgb(os.fspath(image), options=options)
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    array = np.require(image, requirements="W")  # PyTorch warns of arrays of PIL images, which are read-only
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"An image is a path, a PIL image or an RGB uint8 array [H, W, 3], not {array.dtype} "
            f"{list(array.shape)}."
        )
    return array


def cut_query_patch(image: np.ndarray, box: Sequence[int] | None, cfg: CfgNode) -> np.ndarray:
    """Cut a query patch as the model of a config was trained on.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        box: XYXY in pixels; None for the whole image.
        cfg: of the model; its task says how patches are cut.

    Returns:
        RGB uint8 ``[size, size, 3]``.

    Raises:
        ValueError: if the model takes no patches, or the box is empty or not inside the image.
    """
    needs = task_of(cfg).query_patches(cfg)
    if needs is None:
        raise ValueError(f"A {cfg.MODEL.META_ARCHITECTURE} takes no query patches.")
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"{x0} {y0} {x1} {y1} is no box X0 Y0 X1 Y1 inside an image of {width}x{height} px.")
    return cut_patch(image, (x0, y0, x1, y1), margin=needs.margin, size=needs.size)


def _trained_weights(folder: str | os.PathLike) -> str:
    """The final model of a run, else its last checkpoint.

    Raises:
        ValueError: if there is neither.
    """
    final = os.path.join(folder, f"{run_files.FINAL_NAME}.pth")
    if os.path.isfile(final):
        return final
    last = os.path.join(folder, run_files.LAST_CHECKPOINT)
    if not os.path.isfile(last):
        raise ValueError(
            f"The run in {folder} has no checkpoint yet; it writes the first one after "
            "SOLVER.CHECKPOINT_EPOCHS or SOLVER.CHECKPOINT_PERIOD."
        )
    with open(last, encoding="utf-8", errors="replace") as file:
        return os.path.join(folder, file.read().strip())

"""From a config file and a checkpoint to a model that is ready for use: what demos and export begin with."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.config import add_updetr_config
from updetr_d2.config.checks import check_config
from updetr_d2.config.files import merge_config_file
from updetr_d2.data.dataset_mappers.oneshot import cut_patch
from updetr_d2.data.datasets.classes import NUM_CLASSES_KEYS, derive_num_classes
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.transforms.image_io import stack_to_tensor, to_tensor
from updetr_d2.data.transforms.resize import DETRResize

logger = logging.getLogger(__name__)


def setup_inference_config(config_file: str, options: list[str]) -> CfgNode:
    """Read and check a config; its data sets are used for their class names only and may be missing.

    Args:
        config_file: a recipe, or the ``config.yaml`` that a run has written.
        options: alternating keys and values that override it.

    Returns:
        the frozen config.

    Raises:
        ValueError: for a wrong key or value, or if the number of classes is 0 (take it from the data set)
            and the data set is not there.
    """
    cfg = get_cfg()
    add_updetr_config(cfg)
    merge_config_file(cfg, config_file)
    try:
        cfg.merge_from_list(options)
    except (AssertionError, KeyError) as error:  # yacs's way of saying that a key or value is wrong
        raise ValueError(f"The options {' '.join(options)} are not KEY VALUE pairs: {error}") from error
    check_config(cfg)
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    if key is not None and cfg.MODEL[key.split(".")[1]].NUM_CLASSES == 0:
        try:
            if not cfg.DATASETS.TEST:
                raise ValueError("it is empty")
            ensure_registered(cfg.DATASETS.TEST[:1])
            cfg = derive_num_classes(cfg, cfg.DATASETS.TEST[:1])
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
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; add MODEL.WEIGHTS and the checkpoint of a trained model.")
    model = build_model(cfg).eval()
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    if missing := checkpointer.parameters_not_loaded():
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is no trained {cfg.MODEL.META_ARCHITECTURE} of this config: it "
            f"lacks {len(missing)} parameters, such as {missing[0]}."
        )
    return model


class Predictor:
    """A trained model that takes RGB images and, if it looks for them, query patches.

    Args:
        cfg: config with the weights to load.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.model = load_trained_model(cfg)
        self._resize = DETRResize.from_config(cfg, is_train=False)
        self._format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, image: np.ndarray, patches: np.ndarray | None = None) -> dict:
        """
        Args:
            image: RGB uint8 ``[H, W, 3]``.
            patches: RGB uint8 ``[m, h, w, 3]``, for UPDETR and OneShotDETR.

        Returns:
            the model's output for the image, ``instances`` on the CPU with boxes in the pixels of ``image``.
        """
        resized = T.AugInput(image)
        self._resize(resized)
        sample = {
            "image": to_tensor(resized.image, self._format),
            "height": image.shape[0],
            "width": image.shape[1],
        }
        if patches is not None:
            sample["patches"] = stack_to_tensor(patches, self._format)
        output = self.model([sample])[0]
        output["instances"] = output["instances"].to("cpu")
        return output


def cut_query_patch(image: np.ndarray, box: Sequence[int] | None, cfg: CfgNode) -> np.ndarray:
    """Cut a query patch as the model of a config was trained on.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        box: XYXY in pixels; None for the whole image.
        cfg: its ``INPUT.QUERY_PATCH.SIZE`` and, for one-shot detection, ``DATASETS.ONESHOT.CONTEXT_MARGIN``.

    Returns:
        RGB uint8 ``[size, size, 3]``.

    Raises:
        ValueError: if the box is empty or not inside the image, as the end of a sentence.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"{x0} {y0} {x1} {y1} is no box X0 Y0 X1 Y1 inside an image of {width}x{height} px.")
    margin = cfg.DATASETS.ONESHOT.CONTEXT_MARGIN if cfg.MODEL.META_ARCHITECTURE == "OneShotDETR" else 0.0
    return cut_patch(image, (x0, y0, x1, y1), margin=margin, size=cfg.INPUT.QUERY_PATCH.SIZE)

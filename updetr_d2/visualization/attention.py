"""Pictures of attention: where in the image chosen queries look."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import torch
from torch import Tensor

from updetr_d2.modeling.meta_arch import DETR
from updetr_d2.modeling.transformers.transformer import Transformer, TransformerDecoderLayer
from updetr_d2.visualization.boxes import DPI, add_box, pixels_of


@torch.no_grad()
def decoder_attention(model: DETR, batched_inputs: list[dict]) -> Tensor:
    """Attention of every query over the image in the last decoder layer, averaged over the heads.

    Args:
        model: a DETR-style model of ours, in evaluation mode.
        batched_inputs: samples as for the model.

    Returns:
        ``[B, N, h, w]``, each map sums to 1; h and w are those of the transformer's feature map, which
        covers the padded batch.

    Raises:
        ValueError: if the model has another transformer than DETR's.
    """
    layer = model.transformer.decoder.layers[-1] if isinstance(model.transformer, Transformer) else None
    if not isinstance(layer, TransformerDecoderLayer):
        raise ValueError(
            f"A {type(model.transformer).__name__} has no attention over the whole image; MODEL.TRANSFORMER.NAME "
            "Transformer has."
        )
    attention = layer.multihead_attn
    seen: dict[str, Any] = {}

    def keep_weights(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        query, key, _ = args
        seen["weights"] = module.weights(query, key, **kwargs).mean(dim=1)

    hooks = [
        attention.register_forward_pre_hook(keep_weights, with_kwargs=True),
        model.input_proj.register_forward_hook(
            lambda module, inputs, output: seen.update(size=output.shape[-2:])
        ),
    ]
    try:
        model.forward_heads(batched_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["weights"].unflatten(2, seen["size"])


def draw_attention_maps(
    image: np.ndarray,
    attention: Tensor,
    boxes: np.ndarray,
    labels: Sequence[str],
    *,
    stride: tuple[float, float],
    columns: int = 4,
) -> np.ndarray:
    """One panel per query: the image, darkened where the query does not look, with its box and label.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        attention: maps of the chosen queries ``[Q, h, w]``.
        boxes: ``[Q, 4]`` XYXY in the pixels of ``image``.
        labels: title of each panel.
        stride: (vertical, horizontal) pixels of ``image`` that one value of a map stands for.
        columns: panels in a row.

    Returns:
        RGB uint8 ``[h', w', 3]``.
    """
    height, width = image.shape[:2]
    columns = min(columns, max(len(labels), 1))
    rows = max(1, -(-len(labels) // columns))
    panel = 3.0
    figure = matplotlib.figure.Figure(
        figsize=(columns * panel, rows * (panel * height / width + 0.3)), dpi=DPI, layout="constrained"
    )
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, values, box, label in zip(cells, attention.float().cpu().numpy(), boxes, labels):
        extent = (0, values.shape[1] * stride[1], values.shape[0] * stride[0], 0)
        cell.imshow(image, extent=(0, width, height, 0))
        cell.imshow(values, extent=extent, cmap="inferno", alpha=0.6, interpolation="bilinear")
        add_box(cell, box, "cyan", linewidth=2)
        cell.set_xlim(0, width)
        cell.set_ylim(height, 0)  # cuts off the padding of the maps
        cell.set_title(label, fontsize=9)
    return pixels_of(figure)

"""Losses and gradients of every kind of model on a device against those of the CPU in float32."""

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.recipes import build
from benchmarks.speed.step import without_randomness

RECIPES = {
    "UPDETR": "pretrain/updetr_r50_imagenet_60ep.yaml",
    "DETR": "coco/detr_r50_coco_150ep.yaml",
    "OneShotDETR": "oneshot/updetr_r50_voc_300ep.yaml",
    "PanopticDETR": "panoptic/detr_r50_coco_panoptic_joint.yaml",
    "Deformable DETR": "coco/deformable_detr_two_stage_r50_coco_50ep.yaml",
}


def parity(device: str, small: bool) -> dict[str, float | int | str]:
    """Relative differences of the total loss and of the gradient, by model and precision.

    DINO is not among them: its denoising draws other random numbers on each device.
    """
    on_gpu = device.startswith("cuda")
    values: dict[str, float | int | str] = {}
    for name, recipe in RECIPES.items():
        expected = _loss_and_gradient(recipe, "cpu", None)
        for precision, dtype, tf32 in (
            ("float32", None, False),
            ("TF32", None, True),
            ("bfloat16", torch.bfloat16, True),
            ("float16", torch.float16, True),
        ):
            if not on_gpu and precision in ("TF32", "float16"):
                continue
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            found = _loss_and_gradient(recipe, device, dtype)
            loss, gradient = (_difference(a, b) for a, b in zip(found, expected))
            values |= {f"{name}, {precision}, loss": loss, f"{name}, {precision}, gradient": gradient}
    return values


def _loss_and_gradient(recipe: str, device: str, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    _, model, samples = build(recipe, device, True)
    with without_randomness(model):
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            total = torch.stack(list(model(samples).values())).float().sum()
        scale = 2.0**10 if dtype == torch.float16 else 1.0  # against gradients that are too small for float16
        (scale * total).backward()
    return total.detach().cpu(), _gradient(model) / scale


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())

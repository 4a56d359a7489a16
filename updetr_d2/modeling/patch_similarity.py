"""How much what a predicted box shows is like the patch that its query looks for."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy

_FIRST_SCALE = 5.0  # enough for probabilities of 0.01 and 0.99
_SAMPLES = 3  # cells of a box, on each side, that are averaged


class PatchSimilarity(nn.Module):
    """Cosine similarity of the features of boxes and patches, times a learned factor.

    In two stages the queries of all patches start from the same proposals. To learn from nothing to compare what
    is in their boxes with their patches takes long. Features of one CNN can be compared from the start, if they
    are standardized: they have a large part that is the same everywhere.

    Args:
        feature_dim: channels D of the CNN's feature.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.patch_norm = nn.BatchNorm1d(feature_dim, affine=False)
        self.box_norm = nn.BatchNorm1d(feature_dim, affine=False)
        self.proj = nn.Linear(feature_dim, feature_dim, bias=False)
        nn.init.eye_(self.proj.weight)
        self.scale = nn.Parameter(torch.tensor(_FIRST_SCALE))

    def standardize_patches(self, features: list[Tensor]) -> list[Tensor]:
        """Pooled features ``[m, D]`` of the patches of each image, of mean 0 and variance 1 in each channel."""
        counts = [len(each) for each in features]
        return list(_standardize(self.patch_norm, torch.cat(features)).split(counts))

    def forward(self, features: Tensor, valid: Tensor, boxes: Tensor, patches: Tensor) -> Tensor:
        """
        Args:
            features: of the image ``[B, D, h, w]``.
            valid: part (width, height) of the features that each image fills, ``[B, 2]`` or ``[1, 2]``.
            boxes: ``[L, B, N, 4]`` cxcywh as fractions of the image; they get no gradient.
            patches: standardized, ``[B, N, D]``, what each query looks for.

        Returns:
            float32 ``[L, B, N]``, to be added to logits.
        """
        with torch.autocast(features.device.type, enabled=False):
            shown = _standardize(self.box_norm, pool_boxes(features.float(), valid, boxes.detach().float()))
            seen = F.normalize(self.proj(shown).view(*boxes.shape[:3], -1), dim=-1)
            wanted = F.normalize(self.proj(patches.float()), dim=-1)
            return self.scale * (seen * wanted).sum(dim=-1)


def pool_boxes(features: Tensor, valid: Tensor, boxes: Tensor) -> Tensor:
    """Mean features ``[L·B·N, D]`` of boxes; see :meth:`PatchSimilarity.forward`."""
    num_layers, batch_size, num_queries = boxes.shape[:3]
    height, width = features.shape[-2:]
    sides = torch.stack([valid[:, 0] * width, valid[:, 1] * height], dim=1).expand(batch_size, -1)
    corners = cxcywh_to_xyxy(boxes) * sides.repeat(1, 2)[:, None]
    image = torch.arange(batch_size, device=boxes.device).to(boxes)[:, None, None]
    rois = torch.cat([image.expand(num_layers, batch_size, num_queries, 1), corners], dim=-1)
    return roi_align(features, rois.flatten(0, 2), _SAMPLES, sampling_ratio=1, aligned=True).mean(dim=(2, 3))


def _standardize(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    """Values ``[P, D]``; a single one has no variance, and takes that of others before."""
    values = values.float()
    if len(values) > 1:
        return norm(values)
    return F.batch_norm(values, norm.running_mean, norm.running_var)

"""The terms of the set prediction loss as objects: each has names, and says what it needs of the outputs.

A term is a module ``(outputs, targets, matches, num_boxes) -> {name: values of the layers [L]}``, or of the last
layer alone [1]. Terms compute in float32 whatever the autocast. The formulas are in ``losses.py`` and
``mask_losses.py``.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from updetr_d2.modeling import losses, mask_losses
from updetr_d2.modeling.box_ops import cxcywh_to_xyxy
from updetr_d2.modeling.matcher import Matches
from updetr_d2.modeling.outputs import Outputs
from updetr_d2.modeling.targets import BatchTargets

# From this IoU with an uncertain box on, a query is taken to show the same thing.
_UNCERTAIN_IOU = 0.5


class LossTerm(nn.Module):
    """Base of all terms."""

    def applies(self, outputs: Outputs) -> bool:
        """Whether the outputs have what this term needs."""
        return True

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            outputs: with logits and boxes of L layers.
            targets: of the B images.
            matches: the pairs of all L layers.
            num_boxes: scalar that sums over pairs are divided by.

        Returns:
            name -> float32 ``[L]``, or ``[1]`` for the last layer alone.
        """
        raise NotImplementedError

    def num_predicted(self, logits: Tensor) -> Tensor | None:
        """Number of queries ``[B]`` that predict an object by logits ``[B, N, *]``, from a term that knows."""
        return None


def matched_classes(logits: Tensor, targets: BatchTargets, matches: Matches, *, no_object: int) -> Tensor:
    """Class of each query, int64 ``[L, B, N]``; ``no_object`` for those without a target."""
    classes = torch.full(logits.shape[:3], no_object, dtype=torch.int64, device=logits.device)
    classes[matches.layer, matches.image, matches.query] = targets.labels[matches.image, matches.target]
    return classes


def untaught_queries(outputs: Outputs, targets: BatchTargets, matches: Matches) -> Tensor | None:
    """Queries without a target that are not taught "no object", as nobody knows what is there.

    Returns:
        bool ``[L, B, N]``, True for those whose box has an IoU of at least 0.5 with one of ``targets.uncertain``,
        or of at most ``targets.drop_iou`` with every target; None if all are taught.
    """
    if targets.uncertain is None and not targets.drop_iou:
        return None
    num_layers, num_images, num_queries = outputs.boxes.shape[:3]
    boxes = cxcywh_to_xyxy(outputs.boxes.detach().float())
    untaught = torch.zeros(num_layers, num_images, num_queries, dtype=torch.bool, device=boxes.device)
    for image, count in enumerate(targets.counts):
        own = boxes[:, image].flatten(0, 1)
        if targets.uncertain is not None and targets.uncertain.shape[1]:
            iou = box_iou(own, cxcywh_to_xyxy(targets.uncertain[image])).amax(dim=1)
            untaught[:, image] |= (iou >= _UNCERTAIN_IOU).view(num_layers, num_queries)
        if targets.drop_iou:
            iou = box_iou(own, cxcywh_to_xyxy(targets.boxes[image, :count]))
            far = (iou <= targets.drop_iou).all(dim=1)
            untaught[:, image] |= far.view(num_layers, num_queries)
    untaught[matches.layer, matches.image, matches.query] = False
    return untaught


class SoftmaxClassLoss(LossTerm):
    """Cross-entropy with a "no object" class (DETR).

    Args:
        num_classes: foreground classes K.
        eos_coef: weight of "no object", in (0, 1].
    """

    class_weights: Tensor

    def __init__(self, *, num_classes: int, eos_coef: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = eos_coef
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = outputs.logits.float()
            classes = matched_classes(logits, targets, matches, no_object=self.num_classes)
            untaught = untaught_queries(outputs, targets, matches)
            return {"loss_ce": losses.classification_loss(logits, classes, self.class_weights, untaught)}

    def num_predicted(self, logits: Tensor) -> Tensor:
        return (logits.argmax(dim=-1) != self.num_classes).sum(dim=1)


class FocalClassLoss(LossTerm):
    """Sigmoid focal loss over all classes and queries (Deformable DETR, DINO).

    Args:
        num_classes: foreground classes K.
        alpha, gamma: of the focal loss.
    """

    def __init__(self, *, num_classes: int, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = outputs.logits.float()
            classes = matched_classes(logits, targets, matches, no_object=self.num_classes)
            values = losses.sigmoid_focal_loss(
                logits,
                classes,
                num_boxes,
                alpha=self.alpha,
                gamma=self.gamma,
                untaught=untaught_queries(outputs, targets, matches),
            )
            return {"loss_ce": values}

    def num_predicted(self, logits: Tensor) -> Tensor:
        return (logits.amax(dim=-1) > 0).sum(dim=1)  # a probability above one half


class BoxLoss(LossTerm):
    """L1 distance and GIoU of matched boxes."""

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        with torch.autocast(outputs.boxes.device.type, enabled=False):
            boxes = outputs.boxes[matches.layer, matches.image, matches.query].float()
            target_boxes = targets.boxes[matches.image, matches.target]
            pairs = {
                "loss_bbox": losses.box_l1_loss(boxes, target_boxes),
                "loss_giou": losses.giou_loss(boxes, target_boxes),
            }
            num_layers = len(outputs.boxes)
            return {
                name: losses.sum_per_layer(values, matches.layer, num_layers) / num_boxes
                for name, values in pairs.items()
            }


class FeatureLoss(LossTerm):
    """Distance of reconstructed features of matched queries from those of the targets (UP-DETR, Section 3.2)."""

    def applies(self, outputs: Outputs) -> bool:
        return outputs.features is not None

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        assert outputs.features is not None and targets.features is not None
        num_layers = len(outputs.logits)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            # Counted from the end: the features may have more layers than are trained.
            features = outputs.features[matches.layer - num_layers, matches.image, matches.query]
            values = losses.feature_reconstruction_loss(
                features.float(), targets.features[matches.image, matches.target].float()
            )
            return {"loss_feature": losses.sum_per_layer(values, matches.layer, num_layers) / num_boxes}


class MaskLoss(LossTerm):
    """Focal and dice loss of the masks of matched queries of the last layer, the only ones that are computed.

    Args:
        points: compare masks in random points only, None in every pixel.
    """

    def __init__(self, *, points: mask_losses.PointSampling | None = None) -> None:
        super().__init__()
        self.points = points

    def applies(self, outputs: Outputs) -> bool:
        return outputs.masks is not None

    def forward(
        self, outputs: Outputs, targets: BatchTargets, matches: Matches, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        assert outputs.masks is not None and targets.masks is not None
        last = matches.last_layer_only(len(outputs.logits))
        image, query, target = last.image, last.query, last.target
        if not len(image):
            # One query with weight 0 gives every parameter of the mask head a gradient, which DDP waits for.
            first = torch.zeros(1, dtype=torch.int64, device=num_boxes.device)
            nothing = 0 * outputs.masks[first, first].float().sum(dim=(1, 2))
            return {"loss_mask": nothing, "loss_dice": nothing}
        logits = outputs.masks[image, query]
        with torch.autocast(logits.device.type, enabled=False):
            predicted, true = mask_losses.corresponding_values(
                logits.float(), targets.masks[image, target], self.points
            )
            return {
                "loss_mask": mask_losses.focal_loss(predicted, true).sum().reshape(1) / num_boxes,
                "loss_dice": mask_losses.dice_loss(predicted, true).sum().reshape(1) / num_boxes,
            }

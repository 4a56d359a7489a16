"""ObjectDETR: DETReg's losses by their description, DropLoss, every detector; what fine-tuning takes over."""

import dataclasses
import itertools
import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers import DEFORMABLE, DINO, TWO_STAGE, random_sample, tiny_model
from torch import nn

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer, describe
from updetr_d2.modeling.meta_arch.object_detr import objectness

DETREG = (
    *DEFORMABLE,
    *("MODEL.MATCHER.COST_CLASS", 2.0, "MODEL.CRITERION.CLASS_WEIGHT", 2.0),
    *("MODEL.DETR.NUM_CLASSES", 1, "MODEL.UPDETR.TARGET_FEATURE", "res4"),
    *("MODEL.CRITERION.FEATURE_LOSS", "l1", "MODEL.CRITERION.FEATURE_LAST_LAYER_ONLY", True),
)


def sample_of_boxes(*boxes, height=64, width=96):
    """A sample of noise whose objects have the given boxes (px), all of class 0, and patches of noise."""
    instances = Instances((height, width), gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "instances": instances,
        "patches": torch.randint(256, (len(boxes), 3, 64, 64), dtype=torch.uint8),
    }


def corners(box):
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def giou(a, b):
    """Generalized IoU of two boxes given as lists (cx, cy, w, h)."""
    ax0, ay0, ax1, ay1 = corners(a)
    bx0, by0, bx1, by1 = corners(b)
    width, height = max(0, min(ax1, bx1) - max(ax0, bx0)), max(0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - width * height
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return width * height / union - (hull - union) / hull


def focal(logit, is_object, alpha=0.25, gamma=2.0):
    """Focal loss of one logit."""
    p = 1 / (1 + math.exp(-logit))
    if is_object:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


def best_assignment(logits, boxes, true_boxes):
    """The query of each true box, by trying all assignments with the costs 2 (class), 5 (L1), 2 (GIoU)."""

    def cost(query, target):
        class_cost = focal(logits[query], True) - focal(logits[query], False)
        l1 = sum(abs(a - b) for a, b in zip(boxes[query], true_boxes[target]))
        return 2 * class_cost + 5 * l1 - 2 * giou(boxes[query], true_boxes[target])

    assignments = itertools.permutations(range(len(logits)), len(true_boxes))
    return min(assignments, key=lambda chosen: sum(cost(q, t) for t, q in enumerate(chosen)))


def expected_losses(heads, targets, features):
    """DETReg's losses of a batch in plain numbers, matched by trying all assignments.

    Args:
        heads: lists: logits [L][B][N], boxes [L][B][N][4], features [L][B][N][D].
        targets: boxes of each image, cxcywh fractions.
        features: pooled features of each box of each image.
    """
    total = sum(map(len, targets))
    losses = []
    for logits, boxes, states in zip(*heads):
        layer = dict.fromkeys(("loss_ce", "loss_bbox", "loss_giou", "loss_feature"), 0.0)
        for image, (image_boxes, image_features) in enumerate(zip(targets, features)):
            best = best_assignment(logits[image], boxes[image], image_boxes)
            for query in range(len(logits[image])):
                layer["loss_ce"] += 2 * focal(logits[image][query], query in best) / total
            for target, query in enumerate(best):
                box, true_box = boxes[image][query], image_boxes[target]
                layer["loss_bbox"] += 5 * sum(abs(a - b) for a, b in zip(box, true_box)) / total
                layer["loss_giou"] += 2 * (1 - giou(box, true_box)) / total
                pair = list(zip(states[image][query], image_features[target]))
                layer["loss_feature"] += sum(abs(a - b) for a, b in pair) / len(pair) / total
        losses.append(layer)
    *before, last = losses
    for i, layer in enumerate(before):
        last |= {f"{name}_{i}": value for name, value in layer.items() if name != "loss_feature"}
    return last


def test_losses_of_detreg_are_those_of_its_description():
    """Deformable DETR, one class with focal loss, costs and weights 2/5/2, L1 of the crops' features."""
    torch.manual_seed(1)
    model = tiny_model("ObjectDETR", *DETREG, "MODEL.DETR.NUM_QUERIES", 5)
    for head in model.modules():
        if isinstance(head, nn.Linear) and head.out_features in (1, 4):
            nn.init.normal_(head.weight, std=0.3)  # fresh heads answer every query alike
    samples = [
        sample_of_boxes([0, 0, 48, 32], [10, 20, 90, 60]),
        sample_of_boxes([5, 5, 30, 60], [40, 10, 60, 20], [0, 0, 96, 64]),
    ]
    losses = model(samples)
    with torch.no_grad():
        heads = model.forward_heads(samples)
        pixels = [(x["patches"].float() - model.pixel_mean) / model.pixel_std for x in samples]
        crops = [model.backbone(each)["res4"].flatten(2).sum(dim=2) / 16 for each in pixels]  # 4x4 places
    targets = [
        [
            [(x0 + x1) / 2 / 96, (y0 + y1) / 2 / 64, (x1 - x0) / 96, (y1 - y0) / 64]
            for x0, y0, x1, y1 in x["instances"].gt_boxes.tensor.tolist()
        ]
        for x in samples
    ]
    lists = [
        heads["pred_logits"][..., 0].tolist(),
        heads["pred_boxes"].tolist(),
        heads["pred_features"].tolist(),
    ]
    expected = expected_losses(lists, targets, [each.tolist() for each in crops])
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("options", [(), DEFORMABLE, TWO_STAGE, DINO])
@pytest.mark.parametrize("num_classes", [1, 6])
def test_every_detector_learns_objects_and_clusters(options, num_classes):
    torch.manual_seed(0)
    model = tiny_model("ObjectDETR", *options, "MODEL.DETR.NUM_CLASSES", num_classes)
    samples = [random_sample(num_patches=3), random_sample(96, 64, num_patches=1)]
    for sample in samples:
        sample["instances"].gt_classes.fill_(num_classes - 1)
    losses = model(samples)
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_feature", "loss_feature_0"} <= set(losses)
    assert ("loss_ce_dn" in losses) == (options is DINO)
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    trained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not trained, "parameters without a gradient stop training in several processes"
    with torch.no_grad():
        found = model.eval()([{"image": samples[0]["image"]}])[0]["instances"]
    assert len(found) == 20
    assert (found.pred_classes == 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_the_cnn_trains_if_it_is_not_frozen_and_the_target_is_fixed():
    model = tiny_model("ObjectDETR", "MODEL.DETR.NUM_CLASSES", 1, "MODEL.UPDETR.FREEZE_BACKBONE", False)
    sample = random_sample(num_patches=3)
    sample["instances"].gt_classes.fill_(0)
    sum(model([sample]).values()).backward()
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    targets = model.prepare_targets([sample], None)
    assert not targets.features.requires_grad


def test_an_unknown_target_feature_names_its_key():
    with pytest.raises(ValueError, match=r"MODEL.UPDETR.TARGET_FEATURE is 'res9'.*OUT_FEATURES"):
        tiny_model("ObjectDETR", "MODEL.DETR.NUM_CLASSES", 1, "MODEL.UPDETR.TARGET_FEATURE", "res9")


def test_objectness_is_the_probability_of_any_class():
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    (softmax,) = objectness(logits, "softmax").softmax(dim=-1)
    assert softmax[1].item() == pytest.approx(logits.softmax(dim=-1)[0, 3].item())
    assert objectness(logits, "focal").tolist() == [[2.0]]


@pytest.mark.parametrize(("options", "loss"), [((), "softmax"), (DEFORMABLE, "focal")])
def test_droploss_counts_only_queries_that_are_matched_or_near_a_box(options, loss):
    """With one query matched, one near and the others far away, changing those far away changes nothing."""
    torch.manual_seed(0)
    model = tiny_model("ObjectDETR", *options, "MODEL.DETR.NUM_CLASSES", 1, "MODEL.UPDETR.DROP_IOU", 0.01)
    sample = sample_of_boxes([0, 0, 48, 32])
    outputs = model.detect(torch.zeros(1, 3, 64, 96), None)
    targets = model.box_targets([sample])
    outputs.features = None
    boxes = torch.tensor([0.9, 0.9, 0.1, 0.1]).repeat(2, 1, 20, 1)
    boxes[:, :, 0] = torch.tensor([0.25, 0.25, 0.5, 0.5])
    boxes[:, :, 1] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    values = {}
    for name, far in (("low", -2.0), ("high", 3.0)):
        logits = torch.zeros_like(outputs.logits)
        logits[:, :, 2:, 0] = far
        outputs.logits, outputs.boxes = logits, boxes
        outputs.auxiliary = {}
        every = dataclasses.replace(targets, drop_iou=0.0)
        values[name] = [model.criterion(outputs, each)[0]["loss_ce"] for each in (targets, every)]
    assert values["low"][0] == values["high"][0]
    assert values["low"][1] < values["high"][1]
    logits = outputs.logits.clone()
    logits[:, :, 1, 0] += 1
    outputs.logits = logits
    assert model.criterion(outputs, targets)[0]["loss_ce"] > values["high"][0]


@pytest.mark.parametrize("options", [(), TWO_STAGE, DINO])
@pytest.mark.parametrize("pretext", ["ObjectDETR", "UPDETR"])
def test_fine_tuning_takes_over_everything_but_what_tells_classes_apart(tmp_path, options, pretext):
    """Also where there happen to be as many clusters as classes, so that the shapes would fit."""
    torch.manual_seed(0)
    classes = ("MODEL.DETR.NUM_CLASSES", 2)
    pretrained = tiny_model(pretext, *options, *classes)
    torch.save({"model": pretrained.state_dict(), **describe(pretrained)}, tmp_path / "model.pth")
    detector = tiny_model("DETR", *options, *classes)
    fresh = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    UPDETRCheckpointer(detector).load(str(tmp_path / "model.pth"))
    heads = ("class_embed.", "transformer.enc_out_class_embed.", "label_enc.")
    for name, tensor in detector.state_dict().items():
        source = fresh if name.startswith(heads) else pretrained.state_dict()
        assert torch.equal(tensor, source[name]), name
    again = tiny_model(pretext, *options, *classes)
    UPDETRCheckpointer(again).load(str(tmp_path / "model.pth"))
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pretrained.state_dict().items())

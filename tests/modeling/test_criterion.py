"""Set criterion against one written with loops over layers, images and pairs, values and gradients."""

import pytest
import torch
import torchvision
from helpers import outputs_of, random_instances, tiny_cfg
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from updetr_d2.modeling.criterion import SetCriterion, build_criterion
from updetr_d2.modeling.loss_terms import BoxLoss, FeatureLoss, SoftmaxClassLoss
from updetr_d2.modeling.matcher import HungarianMatcher
from updetr_d2.modeling.targets import BatchTargets

CPU = torch.device("cpu")
CLASSES = 4
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_feature": 1.5}


def build(**overrides):
    terms = {"class": SoftmaxClassLoss(num_classes=CLASSES), "box": BoxLoss(), "feature": FeatureLoss()}
    args = {"terms": terms, "matcher": HungarianMatcher(), "weights": WEIGHTS, **overrides}
    criterion = SetCriterion(**args)

    def on_heads(heads, targets):
        return criterion(outputs_of(heads), targets)

    on_heads.exchange = criterion.exchange
    return on_heads


def random_heads(layers=3, images=2, queries=6, feature_dim=None):
    heads = {
        "pred_logits": torch.randn(layers, images, queries, CLASSES + 1),
        "pred_boxes": torch.rand(layers, images, queries, 4),
    }
    if feature_dim is not None:
        heads["pred_features"] = torch.randn(layers, images, queries, feature_dim)
    return {name: value.requires_grad_() for name, value in heads.items()}


def random_targets(*counts, feature_dim=None):
    targets = BatchTargets.from_instances([random_instances(60, 80, n) for n in counts], CPU)
    if feature_dim is not None:
        targets.features = torch.randn(len(counts), max(counts), feature_dim, requires_grad=True)
    return targets


def reference_losses(heads, targets, eos_coef=0.1):
    """Semantics in loops: unweighted losses of every layer by name."""
    num_boxes = max(sum(targets.counts), 1)
    class_weights = torch.tensor([1.0] * CLASSES + [eos_coef])
    layers = []
    for layer in range(len(heads["pred_logits"])):
        loss_bbox = loss_giou = loss_feature = torch.zeros(())
        logits, classes = [], []
        for image, count in enumerate(targets.counts):
            image_logits = heads["pred_logits"][layer, image]
            boxes, labels = heads["pred_boxes"][layer, image], targets.labels[image, :count]
            target_boxes = targets.boxes[image, :count]
            giou = torchvision.ops.generalized_box_iou(
                torchvision.ops.box_convert(boxes, "cxcywh", "xyxy"),
                torchvision.ops.box_convert(target_boxes, "cxcywh", "xyxy"),
            )
            cost = 5 * torch.cdist(boxes, target_boxes, p=1) - image_logits.softmax(1)[:, labels] - 2 * giou
            image_classes = torch.full((len(boxes),), CLASSES)
            for query, target in zip(*linear_sum_assignment(cost.detach().numpy())):
                image_classes[query] = labels[target]
                loss_bbox = loss_bbox + F.l1_loss(boxes[query], target_boxes[target], reduction="sum")
                loss_giou = loss_giou + 1 - giou[query, target]
                if targets.features is not None:
                    ours = F.normalize(heads["pred_features"][layer, image, query], dim=0)
                    theirs = F.normalize(targets.features[image, target], dim=0)
                    loss_feature = loss_feature + F.mse_loss(ours, theirs, reduction="sum")
            logits.append(image_logits)
            classes.append(image_classes)
        named = {
            "loss_ce": F.cross_entropy(torch.cat(logits), torch.cat(classes), weight=class_weights),
            "loss_bbox": loss_bbox / num_boxes,
            "loss_giou": loss_giou / num_boxes,
        }
        if targets.features is not None:
            named["loss_feature"] = loss_feature / num_boxes
        layers.append(named)
    return layers


def weighted_by_name(layers):
    """All layers' losses under the names of the training output: no suffix for the last layer."""
    named = {}
    for i, layer in enumerate(layers):
        suffix = "" if i == len(layers) - 1 else f"_{i}"
        named.update({f"{name}{suffix}": WEIGHTS[name] * value for name, value in layer.items()})
    return named


@pytest.mark.parametrize(
    ("counts", "feature_dim"), [((3, 5), None), ((2, 4), 7), ((0, 3), None), ((9, 2), None)]
)
def test_losses_and_gradients_equal_the_loops(counts, feature_dim):
    """Also with an image without targets and with more targets than queries."""
    heads, targets = random_heads(feature_dim=feature_dim), random_targets(*counts, feature_dim=feature_dim)
    losses, _ = build()(heads, targets)
    expected = weighted_by_name(reference_losses(heads, targets))
    assert set(losses) == set(expected)
    inputs = list(heads.values()) + ([] if feature_dim is None else [targets.features])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        torch.testing.assert_close(loss, expected[name], msg=lambda m, name=name: f"{name}: {m}")
    gradients = torch.autograd.grad(sum(losses.values()), inputs)
    expected_gradients = torch.autograd.grad(sum(expected.values()), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-3)


def test_names_of_all_layers():
    losses, _ = build()(random_heads(feature_dim=7), random_targets(2, 1, feature_dim=7))
    names = ("loss_ce", "loss_bbox", "loss_giou", "loss_feature")
    assert set(losses) == {name + suffix for name in names for suffix in ("", "_0", "_1")}


def test_without_deep_supervision_only_the_last_layer_counts():
    heads, targets = random_heads(), random_targets(2, 3)
    losses, _ = build(deep_supervision=False)(heads, targets)
    expected = weighted_by_name(reference_losses(heads, targets)[-1:])
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"}
    torch.testing.assert_close(losses, expected)


def test_images_without_targets_contribute_only_no_object():
    heads, targets = random_heads(images=2), random_targets(0, 0)
    losses, metrics = build()(heads, targets)
    no_object = -heads["pred_logits"].log_softmax(-1)[..., -1]
    for suffix, layer in (("_0", 0), ("_1", 1), ("", 2)):
        assert float(losses[f"loss_bbox{suffix}"].detach()) == 0
        assert float(losses[f"loss_giou{suffix}"].detach()) == 0
        torch.testing.assert_close(losses[f"loss_ce{suffix}"], no_object[layer].mean())
    assert float(metrics["class_error"]) == 100
    # The box head stays in the graph with zero gradient: DistributedDataParallel waits for every parameter.
    sum(losses.values()).backward()
    assert torch.equal(heads["pred_boxes"].grad, torch.zeros_like(heads["pred_boxes"]))


def test_padding_of_the_targets_has_no_influence():
    heads = random_heads(feature_dim=7)
    targets = random_targets(1, 4, feature_dim=7)
    losses, _ = build()(heads, targets)
    targets.labels[0, 1:] = 3
    targets.boxes[0, 1:] = heads["pred_boxes"][-1, 0, :3].detach()
    targets.features.data[0, 1:] = 1e6
    torch.testing.assert_close(build()(heads, targets)[0], losses)


def test_half_precision_heads_give_float32_losses():
    heads, targets = random_heads(feature_dim=7), random_targets(2, 3, feature_dim=7)
    half = {name: value.detach().bfloat16() for name, value in heads.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = build()(half, targets)
    expected, _ = build()({name: value.float() for name, value in half.items()}, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses, expected)


def test_config_sets_weights_and_no_object_coefficient():
    """Each loss is its key's weight times the loss at weight 1; EOS_COEF as in the loops."""
    keys = {"loss_ce": "CLASS", "loss_bbox": "BBOX", "loss_giou": "GIOU", "loss_feature": "FEATURE"}
    weights = dict(zip(keys, (2.0, 3.0, 4.0, 5.0)))
    options = [x for name, key in keys.items() for x in (f"MODEL.CRITERION.{key}_WEIGHT", weights[name])]
    criterion = build_criterion(tiny_cfg("DETR", *options, "MODEL.CRITERION.EOS_COEF", 0.4))
    heads, targets = random_heads(feature_dim=7), random_targets(2, 3, feature_dim=7)
    losses, _ = criterion(outputs_of(heads), targets)
    for name, value in reference_losses(heads, targets, eos_coef=0.4)[-1].items():
        torch.testing.assert_close(losses[name], weights[name] * value)


def test_metrics_of_the_last_layer_by_hand():
    """Two queries at their targets, the second with a wrong class; a third foreground query in excess."""
    targets = random_targets(2, 0)
    targets.labels[0] = torch.tensor([1, 2])
    boxes = torch.full((2, 2, 4, 4), 0.5)
    boxes[1, 0, :2] = targets.boxes[0]
    boxes[0, 0, 2:] = targets.boxes[0]  # the first layer matches others, which do not count
    logits = torch.zeros(2, 2, 4, CLASSES + 1)
    for query, best_class in enumerate([1, 3, 0, CLASSES]):
        logits[1, 0, query, best_class] = 3
    logits[1, 1, :, CLASSES] = 3
    _, metrics = build()({"pred_logits": logits, "pred_boxes": boxes}, targets)
    assert float(metrics["class_error"]) == 50  # 1 of 2 matched queries
    assert float(metrics["cardinality_error"]) == 0.5  # |3 − 2| and |0 − 0|


@pytest.mark.parametrize(("counts", "expected"), [((2, 3), 5.0), ((0, 0), 1.0)])
def test_number_of_boxes_of_one_process(counts, expected):
    assert float(build().exchange(random_targets(*counts))[0]) == expected


def _number_of_boxes_of_rank(rank, store, targets, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put((rank, [float(build().exchange(t)[0]) for t in targets]))
    torch.distributed.destroy_process_group()


def test_number_of_boxes_is_the_mean_of_two_processes(tmp_path):
    targets_of_rank = [
        [random_targets(3, 4), random_targets(1)],
        [random_targets(2, 0), random_targets(0)],
    ]
    # Forked, as starting two fresh interpreters takes half a minute on a small machine.
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_number_of_boxes_of_rank, args=(rank, tmp_path / "store", targets, results))
        for rank, targets in enumerate(targets_of_rank)
    ]
    for process in processes:
        process.start()
    # (3 + 4 + 2 + 0) / 2 for both, and (1 + 0) / 2 raised to 1.
    try:
        assert dict(results.get(timeout=60) for _ in processes) == {0: [4.5, 1.0], 1: [4.5, 1.0]}
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()

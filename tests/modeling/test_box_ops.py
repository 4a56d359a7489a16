"""Box arithmetic: by hand, against torchvision, and on boxes without area."""

import pytest
import torch
import torchvision

from updetr_d2.modeling.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


def random_xyxy(*shape: int) -> torch.Tensor:
    return cxcywh_to_xyxy(torch.rand(*shape, 4))


def test_conversions_by_hand():
    cxcywh = torch.tensor([[[5.0, 3.0, 4.0, 2.0]]])
    xyxy = torch.tensor([[[3.0, 2.0, 7.0, 4.0]]])
    torch.testing.assert_close(cxcywh_to_xyxy(cxcywh), xyxy)
    torch.testing.assert_close(xyxy_to_cxcywh(xyxy), cxcywh)


@pytest.mark.parametrize(
    ("box1", "box2", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        # Unit squares one apart: no overlap, union 2, enclosing box 3.
        ([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3),
        # Half of the first: IoU 1/2, the enclosing box is the union.
        ([0, 0, 2, 1], [0, 0, 1, 1], 0.5),
    ],
)
def test_generalized_iou_by_hand(box1, box2, expected):
    giou = generalized_iou(torch.tensor(box1).float(), torch.tensor(box2).float())
    assert float(giou) == pytest.approx(expected)


def test_generalized_iou_equals_torchvision_for_all_pairs():
    boxes1, boxes2 = random_xyxy(30), random_xyxy(20)
    torch.testing.assert_close(
        generalized_iou(boxes1[:, None], boxes2[None]),
        torchvision.ops.generalized_box_iou(boxes1, boxes2),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("other", [[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.9], [0.1, 0.1, 0.6, 0.7]])
def test_boxes_without_area_have_finite_value_and_gradient(other):
    box = torch.full((4,), 0.5, requires_grad=True)
    giou = generalized_iou(box, torch.tensor(other))
    giou.backward()
    assert -1 <= float(giou.detach()) <= 1
    assert torch.isfinite(box.grad).all()

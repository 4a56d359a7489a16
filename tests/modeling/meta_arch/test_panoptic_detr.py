"""PanopticDETR: losses of matched queries, frozen detectors, output formats, converted models of others."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import BitMasks
from fvcore.nn import sigmoid_focal_loss
from helpers import RESNET18, random_sample, tiny_cfg, tiny_model
from torch import nn
from torch.nn import functional as F

from updetr_d2.checkpoint.conversions import convert, restore
from updetr_d2.engine.optimizer import build_optimizer

MASK_PARTS = ("bbox_attention.", "mask_head.")
NUM_THINGS = 3  # of 4 classes


class PatchifyPyramid(Backbone):
    """Convolutions without overlap, "res2" to "res5" of strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, kernel_size=4, stride=4)
        self.convs = nn.ModuleList(nn.Conv2d(4 * i, 4 * i + 4, kernel_size=2, stride=2) for i in (1, 2, 3))

    def forward(self, images):
        height, width = images.shape[-2:]
        features = {"res2": self.stem(F.pad(images, (0, -width % 32, 0, -height % 32))).relu()}
        for i, conv in enumerate(self.convs, start=3):
            features[f"res{i}"] = conv(features[f"res{i - 1}"]).relu()
        return features

    def output_shape(self):
        return {f"res{i}": ShapeSpec(channels=4 * (i - 1), stride=2**i) for i in range(2, 6)}


@BACKBONE_REGISTRY.register()
def build_patchify_pyramid(cfg, input_shape):
    return PatchifyPyramid()


OPTIONS = (
    *("MODEL.BACKBONE.NAME", "build_patchify_pyramid"),
    *("MODEL.DETR.HIDDEN_DIM", 128, "MODEL.DETR.NHEADS", 8),
    *("MODEL.MASK_HEAD.NUM_THING_CLASSES", NUM_THINGS),
)


def panoptic_model(*options):
    return tiny_model("PanopticDETR", *OPTIONS, *options)


def masked_sample(height=64, width=96, num_targets=3):
    """A sample whose masks are random parts of its boxes."""
    sample = random_sample(height, width, num_targets=num_targets)
    masks = torch.zeros(num_targets, height, width, dtype=torch.bool)
    for mask, box in zip(masks, sample["instances"].gt_boxes.tensor.round().int().tolist()):
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = torch.rand(y1 - y0, x1 - x0) > 0.3
    sample["instances"].gt_masks = BitMasks(masks)
    return sample


class TestTraining:
    def test_masks_have_losses_on_the_last_layer_only(self):
        losses = panoptic_model()([masked_sample(), masked_sample(50, 70, num_targets=5)])
        boxes = {"loss_ce", "loss_bbox", "loss_giou"}
        assert set(losses) == boxes | {f"{name}_0" for name in boxes} | {"loss_mask", "loss_dice"}
        assert all(torch.isfinite(loss) and loss.shape == () for loss in losses.values())

    def test_masks_of_matched_queries_alone_give_loss_and_gradient_of_all(self):
        """The definition, on all masks; images of different sizes, so there is padding."""
        model = panoptic_model("MODEL.CRITERION.MASK_WEIGHT", 2.0, "MODEL.CRITERION.DICE_WEIGHT", 3.0)
        batch = [masked_sample(64, 96), masked_sample(50, 70, num_targets=5)]
        losses = model(batch)
        (losses["loss_mask"] + losses["loss_dice"]).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

        model.zero_grad()
        heads = model.forward_heads(batch)
        upsampled = F.interpolate(heads["pred_masks"], size=(64, 96), mode="bilinear", align_corners=False)
        outputs = model.compute_outputs(model.preprocess_images(batch), batch)
        targets = model.prepare_targets(batch, outputs)
        matches = model.criterion.matcher(heads["pred_logits"], heads["pred_boxes"], targets)
        focal = dice = 0
        for layer, image, query, target in zip(matches.layer, matches.image, matches.query, matches.target):
            if layer < len(heads["pred_logits"]) - 1:
                continue
            mask = torch.zeros(64, 96)
            true = batch[image]["instances"].gt_masks.tensor[target].float()
            mask[: true.shape[0], : true.shape[1]] = true
            predicted = upsampled[image, query]
            focal += sigmoid_focal_loss(predicted, mask, alpha=0.25, gamma=2, reduction="mean")
            p = predicted.sigmoid()
            dice += 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        torch.testing.assert_close(losses["loss_mask"], 2 * focal / 8)
        torch.testing.assert_close(losses["loss_dice"], 3 * dice / 8)
        (2 * focal / 8 + 3 * dice / 8).backward()
        for name, parameter in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)

    def test_only_matched_masks_are_computed(self):
        model = panoptic_model()
        computed = []
        model.mask_head.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
        model([masked_sample(num_targets=3), masked_sample(num_targets=2)])
        assert computed == [5]

    @pytest.mark.parametrize("num_targets", [0, 3])
    def test_every_parameter_has_a_gradient(self, num_targets):
        """Also without targets: DDP waits for all of them."""
        model = panoptic_model()
        losses = model([masked_sample(num_targets=num_targets)])
        sum(losses.values()).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        mask_gradient = sum(p.grad.abs().sum() for p in model.mask_head.parameters())
        assert (mask_gradient > 0) == (num_targets > 0)
        assert all(loss == 0 for name, loss in losses.items() if not num_targets and "_ce" not in name)

    def test_point_sampled_losses(self):
        batch = [masked_sample(), masked_sample(50, 70)]
        exact = panoptic_model()
        sampled = panoptic_model("MODEL.MASK_HEAD.TRAIN_NUM_POINTS", 20_000)
        random = panoptic_model(
            *("MODEL.MASK_HEAD.TRAIN_NUM_POINTS", 50_000),
            *("MODEL.MASK_HEAD.OVERSAMPLE_RATIO", 1.0, "MODEL.MASK_HEAD.IMPORTANCE_SAMPLE_RATIO", 0.0),
        )
        for model in (sampled, random):
            model.load_state_dict(exact.state_dict())
        losses = [model(batch)["loss_mask"].item() for model in (exact, sampled, random)]
        assert losses[2] == pytest.approx(losses[0], rel=0.05)
        assert losses[1] != pytest.approx(losses[0], rel=0.01)  # mostly where the masks are uncertain

    def test_bfloat16_runs_the_mask_head_and_keeps_losses_in_float32(self):
        model = panoptic_model()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model([masked_sample()])
        assert losses["loss_mask"].dtype == torch.float32
        assert torch.isfinite(losses["loss_mask"])


class TestFrozenDetector:
    def test_a_step_changes_the_masks_alone(self):
        cfg = tiny_cfg("PanopticDETR", *OPTIONS, "MODEL.MASK_HEAD.FREEZE_DETR", True)
        model = panoptic_model("MODEL.MASK_HEAD.FREEZE_DETR", True)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = build_optimizer(cfg, model)
        sum(model([masked_sample(), masked_sample()]).values()).backward()
        optimizer.step()
        changed = {
            name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
        }
        assert changed
        assert all(name.startswith(MASK_PARTS) for name in changed)
        assert {name.split(".")[0] + "." for name in changed} == set(MASK_PARTS)

    def test_the_detector_has_no_graph(self):
        model = panoptic_model("MODEL.MASK_HEAD.FREEZE_DETR", True)
        batch = [masked_sample()]
        outputs = model.compute_outputs(model.preprocess_images(batch), batch)
        assert not outputs.boxes.requires_grad
        assert not outputs.masks.context.requires_grad
        assert outputs.masks.attention.requires_grad

    def test_starts_from_a_detector_with_the_same_boxes(self):
        detector = tiny_model("DETR", *OPTIONS).eval()
        model = panoptic_model("MODEL.MASK_HEAD.FREEZE_DETR", True).eval()
        result = model.load_state_dict(detector.state_dict(), strict=False)
        assert not result.unexpected_keys
        assert all(key.startswith(MASK_PARTS) for key in result.missing_keys)
        batch = [masked_sample()]
        with torch.no_grad():
            torch.testing.assert_close(
                model.forward_heads(batch)["pred_boxes"], detector.forward_heads(batch)["pred_boxes"]
            )


class TestInference:
    @torch.no_grad()
    def test_output_has_detectron2s_formats(self):
        model = panoptic_model("MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0).eval()
        sample = {**masked_sample(64, 96), "height": 100, "width": 150}
        (result,) = model([sample])
        instances = result["instances"]
        assert instances.pred_masks.shape == (20, 100, 150)
        assert instances.pred_masks.dtype == torch.bool
        segment_map, infos = result["panoptic_seg"]
        assert segment_map.shape == (100, 150)
        assert sorted(info["id"] for info in infos) == [i for i in segment_map.unique().tolist() if i]
        assert all(info["isthing"] == (info["category_id"] < NUM_THINGS) for info in infos)
        assert infos

    @torch.no_grad()
    def test_thresholds_come_from_the_config(self):
        model = panoptic_model("MODEL.MASK_HEAD.SCORE_THRESHOLD", 1.0).eval()
        (result,) = model([masked_sample()])
        assert result["panoptic_seg"][1] == []
        fewer = panoptic_model("MODEL.MASK_HEAD.MASK_THRESHOLD", 0.9).eval()
        fewer.load_state_dict(model.state_dict())
        (strict,) = fewer([masked_sample()])
        assert strict["instances"].pred_masks.sum() < result["instances"].pred_masks.sum()

    @torch.no_grad()
    def test_raw_masks_have_the_stride_of_the_finest_feature(self):
        model = panoptic_model().eval()
        heads = model.forward_heads([masked_sample(64, 96), masked_sample(32, 64)])
        assert heads["pred_masks"].shape == (2, 20, 16, 24)
        assert "query_masks" not in heads


class TestConfig:
    @torch.no_grad()
    def test_feature_scale_changes_what_the_mask_head_sees_and_nothing_of_the_detector(self):
        plain = panoptic_model().eval()
        scaled = panoptic_model("MODEL.MASK_HEAD.FEATURE_SCALE", 0.25).eval()
        state = plain.state_dict()
        scaled.load_state_dict(state)
        # The same function with the factor in the weights on features, whose biases it leaves alone.
        state["mask_head.lay1.weight"][:, :128] *= 0.25
        for i in (1, 2, 3):
            state[f"mask_head.adapter{i}.weight"] *= 0.25
        plain.load_state_dict(state)
        batch = [masked_sample()]
        ours, expected = scaled.forward_heads(batch), plain.forward_heads(batch)
        torch.testing.assert_close(ours["pred_boxes"], expected["pred_boxes"], rtol=0, atol=0)
        torch.testing.assert_close(ours["pred_masks"], expected["pred_masks"])

    def test_things_are_counted_in_the_metadata_of_the_training_set(self):
        MetadataCatalog.get("two_things").set(thing_dataset_id_to_contiguous_id={5: 0, 9: 1})
        options = ("MODEL.MASK_HEAD.NUM_THING_CLASSES", 0, "DATASETS.TRAIN", ("two_things",))
        assert panoptic_model(*options).num_thing_classes == 2
        with pytest.raises(ValueError, match="NUM_THING_CLASSES"):
            panoptic_model("MODEL.MASK_HEAD.NUM_THING_CLASSES", 0, "DATASETS.TRAIN", ("unknown_data",))

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            (("MODEL.MASK_HEAD.NUM_THING_CLASSES", 5), "NUM_THING_CLASSES"),
            (("MODEL.MASK_HEAD.IN_FEATURES", ["res4", "res3", "p2"]), "IN_FEATURES"),
        ],
    )
    def test_impossible_values_name_their_key(self, options, key):
        with pytest.raises(ValueError, match=key):
            panoptic_model(*options)


class TestConvertedModels:
    RESNET = (*RESNET18[:-1], ["res2", "res3", "res4", "res5"])

    def test_official_names_and_back(self, official_state_dict):
        """Every tensor has its place in the official layout, whose names the fixture knows."""
        model = panoptic_model(*self.RESNET, "MODEL.DETR.NUM_CLASSES", 133)
        official, report = restore({"model": model.state_dict()}, source="detr-panoptic")
        assert not report.dropped
        assert set(official["model"]) == set(official_state_dict(num_classes=250, panoptic=True))
        assert len(official["model"]["detr.class_embed.bias"]) == 251
        converted, _ = convert(official, source="detr-panoptic")
        assert converted["model"].keys() == model.state_dict().keys()
        assert all(torch.equal(t, converted["model"][n]) for n, t in model.state_dict().items())

    @torch.no_grad()
    def test_masks_of_transformers_detr_agree_on_a_padded_batch(self):
        """An independent implementation, with the softmax over all heads together."""
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("timm")
        config = transformers.DetrConfig(
            **{"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": False},
            **{
                f"{part}_{size}": n
                for part in ("encoder", "decoder")
                for size, n in (("layers", 2), ("ffn_dim", 48))
            },
            **{"d_model": 128, "num_queries": 20, "num_labels": 4},
        )
        theirs = transformers.DetrForSegmentation(config).eval()
        for name, parameter in theirs.named_parameters():
            if name.startswith("bbox_attention."):
                parameter.normal_(0, 2.0)  # sharp attention that differs between queries
            elif name.endswith(("query_position_embeddings.weight", "_proj.weight")):
                parameter.normal_(0, 0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, 1.4 / parameter[0].numel() ** 0.5)
        theirs.mask_head.conv1.conv.weight[:, 128:] *= 100  # attention is small beside the features
        converted, report = convert(theirs.state_dict(), source="transformers-detr")
        assert not report.missing
        ours = panoptic_model(
            *self.RESNET,
            *("MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS", True),
            *("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ).eval()
        ours.load_state_dict(converted["model"], strict=True)

        images = [torch.randn(3, 96, 128), torch.randn(3, 64, 100)]
        pixels, valid = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.long)
        for i, image in enumerate(images):
            pixels[i, :, : image.shape[1], : image.shape[2]] = image
            valid[i, : image.shape[1], : image.shape[2]] = 1
        expected = theirs(pixel_values=pixels, pixel_mask=valid).pred_masks
        masks = ours.forward_heads([{"image": image} for image in images])["pred_masks"]
        assert expected.std(dim=1).max() > 0.05  # not trivially equal
        torch.testing.assert_close(masks, expected, rtol=1e-3, atol=1e-3)

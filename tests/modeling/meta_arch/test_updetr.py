"""UP-DETR: groups of queries, patch mask, query shuffle, frozen or trained CNN, any number of patches."""

import copy

import pytest
import torch
from helpers import RESNET18, WITHOUT_GRADIENT_AT_START, outputs_of, random_sample, tiny_model

DIVISORS_OF_100 = (1, 2, 4, 5, 10, 20, 25, 50, 100)


def with_patches(sample, indices):
    return {**sample, "patches": sample["patches"][indices], "instances": sample["instances"][indices]}


def assert_heads_close(actual, expected, **tolerance):
    for name in ("pred_logits", "pred_boxes", "pred_features"):
        torch.testing.assert_close(actual[name], expected[name], **{"atol": 1e-5, "rtol": 1e-4, **tolerance})


def test_training_returns_the_losses_of_every_layer():
    names = {"loss_ce", "loss_bbox", "loss_giou", "loss_feature"}
    losses = tiny_model("UPDETR")([random_sample(num_patches=5), random_sample(num_patches=5)])
    assert set(losses) == names | {f"{name}_0" for name in names}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_without_reconstruction_there_is_neither_head_nor_loss():
    model = tiny_model("UPDETR", "MODEL.UPDETR.FEATURE_RECON", False)
    assert set(model([random_sample(num_patches=5)])) == {
        name + suffix for name in ("loss_ce", "loss_bbox", "loss_giou") for suffix in ("", "_0")
    }
    assert not any(name.startswith("feature_align") for name, _ in model.named_parameters())


@pytest.mark.parametrize("num_patches", DIVISORS_OF_100)
def test_any_number_of_patches_that_divides_the_queries_trains_and_predicts(num_patches):
    model = tiny_model("UPDETR", "MODEL.DETR.NUM_QUERIES", 100, "MODEL.UPDETR.NUM_PATCHES", num_patches)
    sample = random_sample(num_patches=num_patches)
    losses = model([sample])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        result = model.eval()([sample])[0]["instances"]
    assert len(result) == 100
    assert torch.isfinite(result.pred_boxes.tensor).all()
    assert result.pred_patches[:num_patches].tolist() == list(range(num_patches))


@pytest.mark.parametrize("num_patches", [0, 3, 40])
def test_patches_that_do_not_divide_the_queries_are_an_error(num_patches):
    message = (
        rf"NUM_PATCHES \({num_patches}\) must divide MODEL.DETR.NUM_QUERIES \(20\); .*\[1, 2, 4, 5, 10, 20\]"
    )
    with pytest.raises(ValueError, match=message):
        tiny_model("UPDETR", "MODEL.UPDETR.NUM_PATCHES", num_patches)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_mask_ratio_out_of_range_is_an_error(ratio):
    with pytest.raises(ValueError, match="MASK_RATIO must be in"):
        tiny_model("UPDETR", "MODEL.UPDETR.MASK_RATIO", ratio)


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_patch_changes_the_predictions_of_its_own_group_only(pre_norm, training):
    """With 10 groups of 2 the official loop leaves most groups unmasked or isolated from themselves."""
    model = tiny_model(
        "UPDETR",
        *("MODEL.UPDETR.NUM_PATCHES", 10, "MODEL.UPDETR.MASK_RATIO", 0.0, "MODEL.DETR.PRE_NORM", pre_norm),
    ).train(training)
    sample = random_sample(num_patches=10)
    before = model.forward_heads([sample])
    changed = copy.deepcopy(sample)
    changed["patches"][3] = 255 - changed["patches"][3]
    after = model.forward_heads([changed])
    for name in ("pred_logits", "pred_boxes", "pred_features"):
        difference = (after[name] - before[name]).abs().amax(dim=(0, 1, 3)).unflatten(0, (10, 2))
        assert (difference[3] > 1e-4).all(), name
        difference[3] = 0
        assert difference.max() < 1e-6, name


@torch.no_grad()
def test_queries_of_a_group_see_each_other():
    """A changed query embedding changes all queries of its group; all queries if one group or without mask."""
    for num_patches, attention_mask, reached in ((5, True, 4), (1, True, 20), (5, False, 20)):
        options = ("MODEL.UPDETR.NUM_PATCHES", num_patches, "MODEL.UPDETR.ATTENTION_MASK", attention_mask)
        model = tiny_model("UPDETR", *options).eval()
        sample = random_sample(num_patches=num_patches)
        before = model.forward_heads([sample])["pred_logits"]
        model.query_embed.weight[0] += 3
        difference = (model.forward_heads([sample])["pred_logits"] - before).abs().amax(dim=(0, 1, 3))
        assert (difference > 1e-6).nonzero().flatten().tolist() == list(range(reached))


@torch.no_grad()
@pytest.mark.parametrize("within_groups", [False, True])
def test_a_box_found_by_the_query_of_another_patch_counts_unless_matched_within_groups(within_groups):
    options = ("MODEL.UPDETR.NUM_PATCHES", 5, "MODEL.UPDETR.MATCH_WITHIN_GROUPS", within_groups)
    model = tiny_model("UPDETR", *options)
    sample = random_sample(num_patches=5)
    heads = model.forward_heads([sample])
    targets = model.prepare_targets([sample], outputs_of(heads))
    found = targets.boxes.roll(1, dims=1).repeat_interleave(4, dim=1)  # each by the next patch's queries
    heads["pred_boxes"] = found.expand_as(heads["pred_boxes"])
    losses, _ = model.criterion(outputs_of(heads), targets)
    assert (losses["loss_bbox"] > 0.1) == within_groups


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_patches_predict_what_they_do_among_all(count):
    model = tiny_model("UPDETR").eval()
    sample = random_sample(num_patches=5)
    everything = model.forward_heads([sample])
    some = model.forward_heads([with_patches(sample, slice(count))])
    assert_heads_close(some, {name: value[:, :, : 4 * count] for name, value in everything.items()})


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch_mates():
    """Neither on their size nor on their number of patches, in heads and in Instances."""
    model = tiny_model("UPDETR").eval()
    samples = [
        random_sample(70, 50, num_patches=2),
        random_sample(64, 160, num_patches=5),
        random_sample(128, 96, num_patches=1),
    ]
    together, results = model.forward_heads(samples), model(samples)
    for i, sample in enumerate(samples):
        count = len(sample["patches"])
        alone = model.forward_heads([sample])
        assert_heads_close(
            {name: value[:, i : i + 1, : 4 * count] for name, value in together.items()}, alone, atol=1e-4
        )
        alone, result = model([sample])[0]["instances"], results[i]["instances"]
        assert len(result) == 4 * count
        assert torch.equal(result.pred_patches, alone.pred_patches)
        torch.testing.assert_close(result.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-2, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("counts", "message"), [((6, 5), "with 5 to 6 query"), ((0, 5), "with 0 to 5 query")]
)
def test_too_many_or_no_patches_are_an_error(counts, message):
    samples = [{**random_sample(), "patches": torch.zeros(m, 3, 64, 64, dtype=torch.uint8)} for m in counts]
    with pytest.raises(ValueError, match=rf"{message} patches were given; the model takes 1 to 5"):
        tiny_model("UPDETR").eval()(samples)


@torch.no_grad()
def test_the_best_query_of_each_patch_comes_first():
    model = tiny_model("UPDETR").eval()
    sample = {**random_sample(64, 96, num_patches=5), "height": 128, "width": 96}
    heads = model.forward_heads([sample])
    result = model([sample])[0]["instances"]
    scores = 1 - heads["pred_logits"][-1, 0].softmax(-1)[:, -1]
    boxes = heads["pred_boxes"][-1, 0] * torch.tensor([96, 128, 96, 128])
    assert result.image_size == (128, 96)
    assert result.pred_patches[:5].tolist() == [0, 1, 2, 3, 4]
    assert result.pred_patches.bincount().tolist() == [4] * 5
    for patch in range(5):
        best = max(range(4 * patch, 4 * patch + 4), key=lambda query: float(scores[query]))
        torch.testing.assert_close(result.scores[patch], scores[best])
        torch.testing.assert_close(result.pred_boxes.get_centers()[patch], boxes[best, :2])


# --- How patches enter the queries ---


@torch.no_grad()
def test_patch_features_are_pooled_and_repeated_within_their_group():
    model = tiny_model("UPDETR").eval()
    sample = random_sample(num_patches=5)
    features = model.encode_patches([sample])
    assert features.shape == (1, 5, 16)
    for patch in range(5):
        pooled = model.backbone(model.normalize(sample["patches"][patch : patch + 1]))["res5"].mean((2, 3))
        torch.testing.assert_close(features[0, patch], pooled[0])
    queries = model.compose_queries(features).position(len(features))
    for query in range(20):
        expected = model.patch2query(features[0, query // 4]) + model.query_embed.weight[query]
        torch.testing.assert_close(queries[0, query], expected)


@torch.no_grad()
def test_mask_drops_whole_patch_vectors_of_single_queries():
    """Each query and image by itself, with the bias, without rescaling, in training only."""
    model = tiny_model("UPDETR", "MODEL.UPDETR.MASK_RATIO", 0.3)
    features = torch.randn(400, 5, 16)
    patch_part = model.eval().compose_queries(features).position(len(features)) - model.query_embed.weight
    masked_part = model.train().compose_queries(features).position(len(features)) - model.query_embed.weight
    dropped = (masked_part.abs() < 1e-6).all(dim=-1)
    torch.testing.assert_close(masked_part[~dropped], patch_part[~dropped], atol=1e-5, rtol=1e-4)
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.03)  # 6 sigma of 8000 queries
    # Independent draws: the rate of each query over the images, and pairs within a group and an image.
    assert (dropped.float().mean(dim=0) - 0.3).abs().max() < 0.12
    both = (dropped[:, 0::4] & dropped[:, 1::4]).float().mean()
    assert float(both) == pytest.approx(0.09, abs=0.04)
    next_draw = model.compose_queries(features).position(len(features)) - model.query_embed.weight
    assert not torch.equal((next_draw.abs() < 1e-6).all(dim=-1), dropped)


@torch.no_grad()
def test_evaluation_masks_and_shuffles_nothing():
    model = tiny_model("UPDETR", "MODEL.UPDETR.MASK_RATIO", 0.9, "MODEL.UPDETR.QUERY_SHUFFLE", True).eval()
    features = torch.randn(3, 5, 16)
    expected = model.patch2query(features).repeat_interleave(4, dim=1) + model.query_embed.weight
    torch.testing.assert_close(model.compose_queries(features).position(len(features)), expected)


@torch.no_grad()
@pytest.mark.parametrize("shuffle", [False, True])
def test_shuffle_permutes_the_query_embeddings_and_not_the_patches(shuffle):
    model = tiny_model("UPDETR", "MODEL.UPDETR.MASK_RATIO", 0.0, "MODEL.UPDETR.QUERY_SHUFFLE", shuffle)
    features = torch.randn(3, 5, 16)
    patch_part = model.patch2query(features).repeat_interleave(4, dim=1)
    orders = []
    for _ in range(2):
        embeddings = model.compose_queries(features).position(len(features)) - patch_part
        order = torch.cdist(embeddings, model.query_embed.weight.expand(3, -1, -1)).argmin(dim=-1)
        torch.testing.assert_close(embeddings, model.query_embed.weight[order], atol=1e-5, rtol=1e-4)
        assert sorted(order[0].tolist()) == list(range(20))
        assert torch.equal(order[0], order[1])  # one permutation for the batch
        assert torch.equal(order[0], order[2])
        orders.append(order[0].tolist())
    if shuffle:
        assert orders[0] != orders[1]
        assert orders[0] != sorted(orders[0])
    else:
        assert orders[0] == orders[1] == list(range(20))


# --- The CNN ---


def train_once(model, **sample_args):
    losses = model([random_sample(64, 64, num_patches=5, **sample_args) for _ in range(2)])
    sum(losses.values()).backward()
    return losses


def test_frozen_cnn_does_not_change():
    """No gradient, and no statistics: here with BatchNorms that Detectron2 does not freeze by itself."""
    model = tiny_model("UPDETR", *RESNET18, "MODEL.RESNETS.NORM", "BN")
    before = copy.deepcopy(model.backbone.state_dict())
    train_once(model.train())
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        if not name.startswith(("backbone.", *WITHOUT_GRADIENT_AT_START)):
            assert parameter.grad.abs().sum() > 0, name


def test_trainable_cnn_trains_from_the_first_stage_that_is_not_frozen():
    model = tiny_model("UPDETR", *RESNET18, "MODEL.UPDETR.FREEZE_BACKBONE", False)
    train_once(model)
    for name, parameter in model.backbone.named_parameters():
        if name.startswith(("stem", "res2")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_trainable_cnn_gets_a_gradient_through_the_reconstruction_target():
    """As in the official code: with the queries' way cut off, the target is the only way to the CNN."""
    model = tiny_model("UPDETR", "MODEL.UPDETR.FREEZE_BACKBONE", False)
    batch = [random_sample(64, 64, num_patches=5)]
    heads = model.forward_heads(batch)
    heads = {name: value if name == "patch_features" else value.detach() for name, value in heads.items()}
    losses, _ = model.criterion(outputs_of(heads), model.prepare_targets(batch, outputs_of(heads)))
    losses["loss_feature"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.backbone.parameters())


def test_reconstruction_target_is_the_feature_of_the_matched_patch():
    """A head that returns the pooled feature of patch j at the query matched to j has no loss."""
    model = tiny_model("UPDETR")
    batch = [random_sample(64, 64, num_patches=5)]
    with torch.no_grad():
        heads = model.forward_heads(batch)
    targets = model.prepare_targets(batch, outputs_of(heads))
    matches = model.criterion.matcher(heads["pred_logits"], heads["pred_boxes"], targets)
    heads["pred_features"][matches.layer, matches.image, matches.query] = heads["patch_features"][
        matches.image, matches.target
    ]
    losses, _ = model.criterion(outputs_of(heads), targets)
    assert float(losses["loss_feature"]) == pytest.approx(0, abs=1e-6)
    heads["pred_features"] = heads["pred_features"].roll(1, dims=2)
    losses, _ = model.criterion(outputs_of(heads), targets)
    assert float(losses["loss_feature"]) > 0.01


def test_features_are_computed_of_matched_queries_only():
    model = tiny_model("UPDETR")
    batch = [random_sample(num_patches=5), random_sample(num_patches=3)]
    rows = []
    model.feature_align.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1]))
    model(batch)
    assert rows == [(2 * (5 + 3),)]  # of two layers
    model.eval()(batch)
    assert len(rows) == 1  # inference needs none
    assert model.forward_heads(batch)["pred_features"].shape[:3] == (2, 2, 20)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_feature_losses_are_those_of_all_features(deep_supervision):
    """Features that are computed for matched queries, and features of all queries that these are picked from."""
    model = tiny_model("UPDETR", "MODEL.DETR.DEEP_SUPERVISION", deep_supervision)
    model.mask_ratio = -1.0  # rand() may be 0
    batch = [random_sample(num_patches=5), random_sample(num_patches=5)]
    losses = model(batch)
    heads = model.forward_heads(batch)
    expected, _ = model.criterion(outputs_of(heads), model.prepare_targets(batch, outputs_of(heads)))
    torch.testing.assert_close(losses, expected)


def test_bf16_autocast_keeps_boxes_and_losses_in_float32():
    model = tiny_model("UPDETR", "MODEL.UPDETR.FREEZE_BACKBONE", False)
    batch = [random_sample(64, 64, num_patches=5), random_sample(64, 96, num_patches=5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heads = model.forward_heads(batch)
        losses = model(batch)
    assert heads["pred_boxes"].dtype == heads["pred_logits"].dtype == torch.float32
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

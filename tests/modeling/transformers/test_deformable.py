"""Deformable DETR's transformer: proposals, refinement, levels, padding, and that every task can have it."""

import math

import pytest
import torch
from detectron2.structures import BitMasks
from helpers import DEFORMABLE, DINO, PANOPTIC_RESNET18, REFINE, TWO_STAGE, random_sample, tiny_model
from torch import nn

from updetr_d2.modeling.meta_arch.detr import resize_padding
from updetr_d2.modeling.position_encoding import SinePositionEncoding, sine_features
from updetr_d2.modeling.transformers.base import Pyramid, Queries
from updetr_d2.modeling.transformers.deformable_decoder import DeformableDecoder, inverse_sigmoid
from updetr_d2.modeling.transformers.proposals import best_tokens, token_proposals, with_patches
from updetr_d2.modeling.transformers.tokens import flatten_levels

FORMS = {"plain": DEFORMABLE, "refine": REFINE, "two-stage": TWO_STAGE, "dino": DINO}
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)


def seeded_model(meta_architecture, *options):
    """Box heads and attention that do something: fresh ones are zero."""
    torch.manual_seed(0)
    model = tiny_model(meta_architecture, *options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layers.2.weight") or "sampling_offsets.weight" in name:
                parameter.normal_(0, 0.1)
    return model


# --- Parts ---


def levels_of(sizes, paddings=None, *, image_padding=None, coarsest=0, exact=False):
    batch_size = 1 if paddings is None else len(paddings[0])
    pyramid = Pyramid(
        features={},
        levels=[torch.randn(batch_size, 8, h, w) for h, w in sizes],
        paddings=[None] * len(sizes) if paddings is None else paddings,
        coarsest=coarsest,
        image_size=(0, 0),
        image_padding=image_padding,
    )
    return flatten_levels(pyramid, SinePositionEncoding(8), torch.zeros(len(sizes), 8), exact=exact)


def test_every_token_proposes_a_box_around_its_center():
    tokens = levels_of([(4, 6), (2, 3)])
    logits, usable = token_proposals(tokens, size=0.05)
    expected = [((x + 0.5) / 6, (y + 0.5) / 4, 0.05, 0.05) for y in range(4) for x in range(6)]
    expected += [((x + 0.5) / 3, (y + 0.5) / 2, 0.1, 0.1) for y in range(2) for x in range(3)]
    assert usable.all()
    torch.testing.assert_close(logits.sigmoid()[0], torch.tensor(expected))


def test_the_size_of_the_first_boxes_is_that_of_the_config():
    """By the boxes of a fresh model, which leaves the proposals of its tokens as they are."""
    model = tiny_model(
        "DETR", *TWO_STAGE, "MODEL.DEFORMABLE.PROPOSAL_SIZE", 0.2, "MODEL.DEFORMABLE.NUM_LEVELS", 3
    )
    tokens = levels_of([(4, 4), (2, 2)])
    values = torch.zeros(1, 20, model.transformer.hidden_dim)
    _, anchors = model.transformer.encoder_memory(tokens.with_values(values))
    sizes = anchors.sigmoid()[0, :, 2:]
    torch.testing.assert_close(sizes[:16], torch.full((16, 2), 0.2))
    torch.testing.assert_close(sizes[16:], torch.full((4, 2), 0.4))


def test_without_proposals_their_size_does_not_matter():
    """With 6 levels the coarsest proposals would be larger than the image."""
    tiny_model("DETR", *REFINE, "MODEL.DEFORMABLE.NUM_LEVELS", 6)


def test_padded_tokens_and_those_near_the_edge_propose_nothing():
    """The second image fills the left 60 of 100 columns and one row; its first center is 1/120 of its width."""
    padding = torch.zeros(2, 1, 100, dtype=torch.bool)
    padding[1, :, 60:] = True
    logits, usable = token_proposals(levels_of([(1, 100)], [padding]), size=0.05)
    for image, width in enumerate((100, 60)):
        for x in range(100):
            center = (x + 0.5) / width
            inside = 0.01 < center < 0.99 and x < width
            assert usable[image, x] == inside
            if inside:
                assert logits[image, x, 0].item() == pytest.approx(math.log(center / (1 - center)), abs=1e-4)
            else:
                assert torch.isinf(logits[image, x]).all()


def test_exact_places_of_tokens_are_where_their_features_come_from():
    """Images of 104 x 139 and 160 x 96 px in a batch of 160 x 160: strides 16 and 32, and a further level."""
    sizes = [(104, 139), (160, 96)]
    image_padding = torch.stack([torch.ones(160, 160, dtype=torch.bool) for _ in sizes])
    for padding, (height, width) in zip(image_padding, sizes):
        padding[:height, :width] = False
    levels = [(10, 10), (5, 5), (3, 3)]
    paddings = [resize_padding(image_padding, shape) for shape in levels]
    tokens = levels_of(levels, paddings, image_padding=image_padding, coarsest=1, exact=True)
    pixels = [
        ((x + 0.5) * stride, (y + 0.5) * stride)
        for stride, (h, w) in zip((16, 32, 64), levels)
        for y in range(h)
        for x in range(w)
    ]
    for i, (height, width) in enumerate(sizes):
        expected = torch.tensor(pixels) / torch.tensor([width, height])
        torch.testing.assert_close(tokens.centers()[i], expected)
        by_hand = torch.cat(
            [sine_features(expected[:, k] * 2 * math.pi, 4) for k in (1, 0)], dim=-1
        )  # y before x
        torch.testing.assert_close(tokens.position[i], by_hand)
        # The middle of the image is in the middle of it on each level, too.
        middle = tokens.in_levels(torch.full((2, 1, 2), 0.5))[i, 0]
        covered = torch.tensor([160.0, 160.0, 192.0])
        torch.testing.assert_close(middle * covered[:, None], torch.tensor([[width / 2, height / 2]] * 3))


def test_counted_places_of_tokens_are_the_official_ones():
    """Of 104 rows in 128 all four tokens of stride 32 count, whatever they show."""
    image_padding = torch.zeros(1, 128, 128, dtype=torch.bool)
    image_padding[:, 104:] = True
    paddings = [resize_padding(image_padding, (4, 4))]
    counted = levels_of([(4, 4)], paddings, image_padding=image_padding)
    exact = levels_of([(4, 4)], paddings, image_padding=image_padding, exact=True)
    assert counted.valid.tolist() == [[[1.0, 1.0]]]
    assert exact.valid.tolist() == [[[1.0, 104 / 128]]]


@pytest.mark.parametrize("options", [TWO_STAGE, DINO], ids=["two-stage", "dino"])
@torch.no_grad()
def test_the_key_moves_boxes_of_images_that_end_within_a_token_alone(options):
    """Of 32 px: the second image ends at 112 rows, the first fills whole tokens."""
    exact = seeded_model("DETR", *options, "MODEL.DEFORMABLE.EXACT_VALID_RATIOS", True).eval()
    counted = seeded_model("DETR", *options).eval()
    counted.load_state_dict(exact.state_dict())
    batch = [random_sample(128, 128), random_sample(112, 128)]
    boxes = [model.forward_heads(batch)["pred_boxes"][-1] for model in (exact, counted)]
    assert (boxes[0][1] - boxes[1][1]).abs().max() > 1e-3
    if options is TWO_STAGE:  # DINO encodes the positions of tokens half a token further
        torch.testing.assert_close(boxes[0][0], boxes[1][0], atol=1e-4, rtol=1e-4)


def test_best_tokens_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.8, 0.2, 0.6, 0.4]])
    assert best_tokens(scores, Queries(None, 2)).tolist() == [[1, 3], [0, 2]]
    # Each group of queries starts from the same boxes.
    assert best_tokens(scores, Queries(None, 4, num_groups=2)).tolist() == [[1, 3, 1, 3], [0, 2, 0, 2]]
    # As many queries as tokens, or the best again where groups need their size.
    assert best_tokens(scores, Queries(None, 9)).shape == (2, 4)
    assert best_tokens(scores[:, :2], Queries(None, 6, num_groups=2)).tolist() == [
        [1, 0, 1] * 2,
        [0, 1, 0] * 2,
    ]


def test_patches_are_added_to_the_content():
    content, patches = torch.rand(2, 3, 4), torch.rand(2, 5, 4)
    assert with_patches(content, Queries(None, 5)) is content
    torch.testing.assert_close(
        with_patches(content, Queries(None, 5, patches=patches)), content + patches[:, :3]
    )


def test_inverse_sigmoid_is_bounded():
    values = torch.tensor([-0.1, 0.0, 0.25, 1.0])
    bound = math.log(1e-5 / 1.0)
    expected = torch.tensor([bound, bound, math.log(1 / 3), -bound])
    torch.testing.assert_close(inverse_sigmoid(values, 1e-5), expected, rtol=1e-3, atol=1e-4)


# --- Outputs ---


@every_form
@torch.no_grad()
def test_shapes_of_raw_outputs(options):
    heads = seeded_model("DETR", *options).forward_heads([random_sample(), random_sample(96, 64)])
    assert heads["pred_logits"].shape == (2, 2, 20, 4)
    assert heads["pred_boxes"].shape == (2, 2, 20, 4)
    assert heads["pred_boxes"].min() >= 0
    assert heads["pred_boxes"].max() <= 1


@every_form
@torch.no_grad()
def test_outputs_of_an_image_do_not_depend_on_its_batch_mates(options):
    """On their sizes alone: as in the official code, the group norm of the levels counts the padding as well."""
    model = seeded_model("DETR", *options).eval()
    small, mates = random_sample(64, 96), [random_sample(96, 128), random_sample(96, 128)]
    first, second = (model.forward_heads([mates[i], small]) for i in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name][:, 1], second[name][:, 1], rtol=1e-4, atol=1e-5)
        assert (first[name][:, 0] - second[name][:, 0]).abs().max() > 1e-3


@every_form
@pytest.mark.parametrize(
    ("features", "num_levels"), [(("res5",), 1), (("res4", "res5"), 2), (("res5",), 3), (("res4", "res5"), 4)]
)
@torch.no_grad()
def test_small_images_with_one_to_four_levels(options, features, num_levels):
    levels = ("MODEL.DEFORMABLE.IN_FEATURES", features, "MODEL.DEFORMABLE.NUM_LEVELS", num_levels)
    model = seeded_model("DETR", *options, *levels).eval()
    heads = model.forward_heads([random_sample(64, 64)])
    assert heads["pred_boxes"].shape[:2] == (2, 1)
    assert heads["pred_boxes"].isfinite().all()
    assert heads["pred_logits"].isfinite().all()


@torch.no_grad()
def test_two_stages_have_no_more_queries_than_tokens():
    options = (*TWO_STAGE, "MODEL.DEFORMABLE.IN_FEATURES", ("res5",), "MODEL.DEFORMABLE.NUM_LEVELS", 1)
    heads = seeded_model("DETR", *options).forward_heads([random_sample(64, 96)])
    assert heads["pred_logits"].shape == (2, 1, 6, 4)


@torch.no_grad()
@pytest.mark.parametrize("first", ["res2", "res3", "res5"])
def test_levels_of_a_timm_backbone(first):
    features = ["res2", "res3", "res4", "res5"]
    features = features[features.index(first) :]
    pytest.importorskip("timm")
    options = (
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18"),
        *("MODEL.TIMM.OUT_FEATURES", features),
        *("MODEL.DEFORMABLE.IN_FEATURES", features, "MODEL.DEFORMABLE.NUM_LEVELS", 4),
    )
    heads = seeded_model("DETR", *TWO_STAGE, *options).eval().forward_heads([random_sample(128, 128)])
    assert heads["pred_boxes"].shape == (2, 1, 20, 4)


# --- Training ---

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
SUFFIXES = {"plain": (), "refine": (), "two-stage": ("_enc",), "dino": ("_enc", "_dn", "_dn_0")}


@pytest.mark.parametrize("form", FORMS)
def test_names_of_losses(form):
    losses = tiny_model("DETR", *FORMS[form])([random_sample()])
    suffixes = ("", "_0", *SUFFIXES[form])
    assert set(losses) == {f"{name}{suffix}" for name in LOSSES for suffix in suffixes}


def task_sample(meta_architecture, num_targets):
    if meta_architecture in ("UPDETR", "OneShotDETR"):
        sample = random_sample(num_patches=2)
        if meta_architecture == "OneShotDETR":
            sample["instances"] = sample["instances"][:num_targets]
            sample["instances"].gt_classes.zero_()
        return sample
    sample = random_sample(num_targets=num_targets)
    if meta_architecture == "PanopticDETR":
        sample["instances"].gt_masks = BitMasks(torch.rand(num_targets, 64, 96) > 0.5)
    return sample


TASK_OPTIONS = {
    "DETR": (),
    "UPDETR": ("MODEL.UPDETR.FREEZE_BACKBONE", False),
    "OneShotDETR": ("MODEL.DETR.NUM_CLASSES", 1),
    "PanopticDETR": PANOPTIC_RESNET18,
}


@every_form
@pytest.mark.parametrize("meta_architecture", TASK_OPTIONS)
def test_every_task_trains_every_parameter(options, meta_architecture):
    model = seeded_model(meta_architecture, *options, *TASK_OPTIONS[meta_architecture])
    samples = [task_sample(meta_architecture, 2), task_sample(meta_architecture, 2)]
    losses = model(samples)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    model.eval()
    with torch.no_grad():
        (result, _), heads = model(samples), model.forward_heads(samples)
    num_logits = {"UPDETR": 2, "OneShotDETR": 1}.get(meta_architecture, 4)
    assert heads["pred_logits"].shape[-1] == num_logits
    assert heads["pred_boxes"].shape[-1] == 4
    assert len(result["instances"]) > 0


@every_form
@pytest.mark.parametrize("meta_architecture", ["DETR", "OneShotDETR", "PanopticDETR"])
def test_batches_without_objects_give_every_parameter_a_gradient(options, meta_architecture):
    """Zero or not: DDP waits for it."""
    model = tiny_model(meta_architecture, *options, *TASK_OPTIONS[meta_architecture])
    losses = model([task_sample(meta_architecture, 0)])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def last_box_gradients(*options):
    """Which box heads the loss of the last layer's boxes trains, of two layers and the encoder's."""
    model = seeded_model("DETR", *options)
    losses = model([random_sample()])
    (losses["loss_bbox"] + losses["loss_giou"]).backward()
    used = [head.layers[0].weight.grad for head in model.bbox_embed]
    return [grad is not None and bool(grad.abs().sum() > 0) for grad in used]


def test_boxes_are_trained_through_one_layer_or_two():
    three = ("MODEL.DETR.DEC_LAYERS", 3)
    assert last_box_gradients(*REFINE, *three) == [False, False, True]
    assert last_box_gradients(*REFINE, *three, "MODEL.DEFORMABLE.LOOK_FORWARD_TWICE", True) == [
        False,
        True,
        True,
    ]
    assert last_box_gradients(*TWO_STAGE, *three) == [False, False, True, False]


@torch.no_grad()
def test_each_layer_starts_from_the_boxes_of_the_layer_before(monkeypatch):
    model = seeded_model("DETR", *REFINE).eval()
    references = []
    move_boxes = DeformableDecoder.move_boxes

    def spy(self, head, state, reference):
        references.append(reference)
        return move_boxes(self, head, state, reference)

    monkeypatch.setattr(DeformableDecoder, "move_boxes", spy)
    boxes = model.forward_heads([random_sample()])["pred_boxes"]
    assert references[0].shape == (1, 20, 2)
    torch.testing.assert_close(references[1], boxes[0])
    assert (boxes[0] - boxes[1]).abs().max() > 1e-3


@every_form
def test_boxes_and_losses_are_float32_under_bfloat16(options):
    model = seeded_model("DETR", *options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([random_sample()])
        heads = model.eval().forward_heads([random_sample()])
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {value.dtype for value in heads.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("part", ["ENCODER", "DECODER"])
def test_recomputing_a_part_changes_nothing(part):
    gradients = []
    for recompute in (False, True):
        model = seeded_model("DETR", *TWO_STAGE, f"MODEL.DETR.RECOMPUTE_{part}", recompute)
        torch.manual_seed(1)
        sum(model([random_sample()]).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [TWO_STAGE, DINO], ids=["two-stage", "dino"])
def test_fresh_class_heads_give_the_prior_of_the_config(options):
    model = tiny_model("DETR", *options, "MODEL.DEFORMABLE.CLASS_PRIOR", 0.1)
    biases = [value for name, value in model.named_parameters() if "class_embed" in name and "bias" in name]
    assert len(biases) == (3 if options is TWO_STAGE else 2)  # those of the encoder among them
    for bias in biases:
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.1))


def test_fresh_heads_predict_little_foreground_and_leave_boxes_alone():
    heads = tiny_model("DETR", *TWO_STAGE)
    assert torch.allclose(heads.class_embed[0].bias.sigmoid(), torch.tensor(0.01))
    assert all(head.layers[-1].bias.eq(0).all() for head in heads.bbox_embed)
    refined = tiny_model("DETR", *REFINE).bbox_embed
    assert [head.layers[-1].bias.tolist() for head in refined] == [[0, 0, -2, -2], [0, 0, 0, 0]]
    assert isinstance(tiny_model("DETR", *DEFORMABLE).class_embed, nn.Linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*DEFORMABLE, "MODEL.DEFORMABLE.TWO_STAGE", True), r"TWO_STAGE needs MODEL\.DEFORMABLE\.BOX_REFINE"),
        ((*DEFORMABLE, "MODEL.DEFORMABLE.NUM_LEVELS", 1), r"NUM_LEVELS \(1\) is less than the number of"),
        ((*DEFORMABLE, "MODEL.DETR.HIDDEN_DIM", 48), r"HIDDEN_DIM \(48\) must be a multiple of .* 32"),
        (
            (*DEFORMABLE, "MODEL.DEFORMABLE.CLASS_PRIOR", 1.0),
            r"CLASS_PRIOR is 1.0: it must be between 0 and 1",
        ),
        (
            (*TWO_STAGE, "MODEL.DEFORMABLE.PROPOSAL_SIZE", 0.5),
            r"PROPOSAL_SIZE is 0.5: .* doubled from level to level \(MODEL\.DEFORMABLE\.NUM_LEVELS is 3\)",
        ),
        (
            (*REFINE, "MODEL.DENOISING.NUM_QUERIES", 10),
            r"DENOISING\.NUM_QUERIES needs queries that are boxes",
        ),
        (("MODEL.DENOISING.NUM_QUERIES", 10), r"DENOISING\.NUM_QUERIES needs queries that are boxes"),
        (
            (*DEFORMABLE, "MODEL.DEFORMABLE.IN_FEATURES", ("res3",)),
            r"IN_FEATURES is 'res3', but the backbone",
        ),
        (
            (*DINO, "MODEL.DEFORMABLE.MIXED_SELECTION", False, "MODEL.DEFORMABLE.LOOK_FORWARD_TWICE", False),
            r"needs MODEL\.DEFORMABLE\.MIXED_SELECTION, MODEL\.DEFORMABLE\.LOOK_FORWARD_TWICE: set them to True",
        ),
    ],
)
def test_errors_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("DETR", *options)

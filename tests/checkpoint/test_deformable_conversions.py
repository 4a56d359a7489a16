"""Official Deformable DETR and DINO checkpoints become ours and come back, copies and unused rows included."""

import itertools

import pytest
import torch
import torchvision
from helpers import DEFORMABLE, DINO, REFINE, TWO_STAGE, tiny_model
from torch import nn

from updetr_d2.checkpoint.conversions import UNUSED_ROWS, convert, restore

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
WIDTH, LAYERS = 32, 2
FORMS = ["plain", "refine", "two-stage", "dino"]


def source_of(form):
    return "dino" if form == "dino" else "deformable-detr"


def attention():
    module = nn.Module()
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        module.add_module(name, nn.Linear(WIDTH, WIDTH))
    return module


def layer(*, decoder):
    module = nn.Module()
    if decoder:
        module.cross_attn, module.self_attn = attention(), nn.MultiheadAttention(WIDTH, 4)
    else:
        module.self_attn = attention()
    for i in range(3 if decoder else 2):
        module.add_module(f"norm{i + 1}", nn.LayerNorm(WIDTH))
    module.linear1, module.linear2 = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
    return module


def mlp(*sizes):
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
    return module


def stack(*, decoder):
    module = nn.Module()
    module.layers = nn.ModuleList(layer(decoder=decoder) for _ in range(LAYERS))
    return module


def official(form, *, num_classes=91):
    """A random state dict with the names and the sharing of the official code."""
    torch.manual_seed(0)
    model, transformer = nn.Module(), nn.Module()
    transformer.level_embed = nn.Parameter(torch.zeros(4, WIDTH))
    transformer.encoder, transformer.decoder = stack(decoder=False), stack(decoder=True)
    model.transformer = transformer
    count = LAYERS + (form == "two-stage")
    shared = form in ("plain", "dino")
    classes = [nn.Linear(WIDTH, num_classes) for _ in range(1 if shared else count)]
    boxes = [mlp(WIDTH, WIDTH, WIDTH, 4) for _ in range(1 if shared else count)]
    model.class_embed = nn.ModuleList(classes * (count if shared else 1))
    model.bbox_embed = nn.ModuleList(boxes * (count if shared else 1))
    if form != "plain":
        transformer.decoder.bbox_embed = model.bbox_embed
    if form in ("two-stage", "dino"):
        transformer.decoder.class_embed = model.class_embed
        transformer.enc_output, transformer.enc_output_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
    else:
        transformer.reference_points = nn.Linear(WIDTH, 2)
        model.query_embed = nn.Embedding(5, 2 * WIDTH)
    if form == "two-stage":
        transformer.pos_trans = nn.Linear(2 * WIDTH, 2 * WIDTH)
        transformer.pos_trans_norm = nn.LayerNorm(2 * WIDTH)
    if form == "dino":
        transformer.decoder.norm = nn.LayerNorm(WIDTH)
        transformer.decoder.ref_point_head = mlp(2 * WIDTH, WIDTH, WIDTH)
        transformer.tgt_embed = nn.Embedding(5, WIDTH)
        transformer.enc_out_class_embed = nn.Linear(WIDTH, num_classes)
        transformer.enc_out_bbox_embed = mlp(WIDTH, WIDTH, WIDTH, 4)
        model.label_enc = nn.Embedding(num_classes + 1, WIDTH)
    channels = (128, 256, 512, 512)
    model.input_proj = nn.ModuleList(
        nn.Sequential(nn.Conv2d(c, WIDTH, 3 if i == 3 else 1), nn.GroupNorm(32, WIDTH))
        for i, c in enumerate(channels)
    )
    model.backbone = nn.ModuleList([nn.Module()])
    model.backbone[0].body = torchvision.models.resnet18(weights=None)
    model.backbone[0].body.fc = None
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def assert_same(a, b):
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("num_classes", [20, 91])
@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_bit_for_bit_with_all_copies(form, num_classes):
    theirs = official(form, num_classes=num_classes)
    converted, report = convert({"model": theirs, "epoch": 1}, source=source_of(form))
    assert report.missing == []
    assert all(why.startswith("a copy of ") for _, why in report.dropped)
    assert len(report.kept) + len(report.renamed) + len(report.dropped) == len(theirs)
    assert (UNUSED_ROWS in converted) == (num_classes == 91)

    restored, report = restore(converted, source=source_of(form))
    assert_same(restored["model"], theirs)
    assert report.missing == report.dropped == []


@pytest.mark.parametrize(
    ("form", "copy", "original"),
    [
        ("plain", "class_embed.1.bias", "class_embed.0.bias"),
        ("refine", "transformer.decoder.bbox_embed.1.layers.2.bias", "bbox_embed.1.layers.2.bias"),
        ("two-stage", "transformer.decoder.class_embed.2.weight", "class_embed.2.weight"),
        ("dino", "transformer.decoder.class_embed.1.weight", "class_embed.0.weight"),
    ],
)
def test_copies_are_compared_with_what_they_should_be_copies_of(form, copy, original):
    theirs = official(form, num_classes=20)
    _, report = convert(theirs, source=source_of(form))
    assert dict(report.dropped)[copy] == f"a copy of {original}"
    theirs[copy] = theirs[copy] + 1
    _, report = convert(theirs, source=source_of(form))
    assert dict(report.dropped)[copy].startswith(f"not the copy of {original}")


def test_the_heads_under_their_other_name_alone_are_enough():
    """Files that write shared tensors once."""
    theirs = official("two-stage", num_classes=20)
    expected, _ = convert(theirs, source="deformable-detr")
    once = {name: tensor for name, tensor in theirs.items() if not name.startswith(("class_", "bbox_"))}
    converted, report = convert(once, source="deformable-detr")
    assert report.missing == report.dropped == []
    assert_same(converted["model"], expected["model"])


@pytest.mark.parametrize(
    ("form", "heads"),
    [
        ("plain", ["class_embed"]),
        ("refine", ["class_embed.0", "class_embed.1"]),
        ("two-stage", ["class_embed.0", "class_embed.1"]),
        ("dino", ["class_embed", "transformer.enc_out_class_embed"]),
    ],
)
def test_every_class_head_has_the_rows_of_the_80_categories(form, heads):
    theirs = official(form)
    ours = convert(theirs, source=source_of(form))[0]["model"]
    for head in heads:
        their_head = "class_embed.0" if head == "class_embed" else head
        for part in ("weight", "bias"):
            assert torch.equal(ours[f"{head}.{part}"], theirs[f"{their_head}.{part}"][COCO_IDS])


def test_label_embeddings_move_along():
    theirs = official("dino")
    ours = convert(theirs, source="dino")[0]["model"]["label_enc.weight"]
    assert torch.equal(ours, theirs["label_enc.weight"][[*COCO_IDS, 91]])


def test_the_encoder_of_two_stages_still_ranks_by_the_row_of_id_0():
    theirs = official("two-stage")
    ours = convert(theirs, source="deformable-detr")[0]["model"]
    assert torch.equal(ours["class_embed.2.bias"], theirs["class_embed.2.bias"][[0, *COCO_IDS[1:]]])


@pytest.mark.parametrize("form", FORMS)
def test_trained_coco_models_never_predict_unused_ids(form):
    """Without stored rows, as after training."""
    converted, _ = convert(official(form), source=source_of(form))
    ours = converted["model"]
    theirs = restore({"model": ours}, source=source_of(form))[0]["model"]
    head = "class_embed.bias" if "class_embed.bias" in ours else "class_embed.0.bias"
    assert torch.equal(theirs["class_embed.0.bias"][COCO_IDS], ours[head])
    unused = sorted(set(range(91)) - set(COCO_IDS))
    assert theirs["class_embed.0.bias"][unused].sigmoid().max() == 0
    assert theirs["class_embed.0.weight"][unused].abs().max() == 0
    if form == "two-stage":
        assert theirs["class_embed.2.bias"][0] == ours["class_embed.2.bias"][0]


def test_files_from_before_there_were_several_heads_are_restored(official_state_dict):
    theirs = official_state_dict(num_classes=91)
    converted, _ = convert(theirs, source="detr")
    unused = converted[UNUSED_ROWS]
    converted[UNUSED_ROWS] = {part: unused[f"class_embed.{part}"] for part in ("weight", "bias")}
    assert_same(restore(converted, source="detr")[0]["model"], theirs)


@pytest.mark.parametrize(
    ("form", "note"),
    [
        ("plain", "BOX_REFINE False, MODEL.DEFORMABLE.TWO_STAGE False"),
        ("refine", "NUM_QUERIES 5, MODEL.DEFORMABLE.BOX_REFINE True, MODEL.DEFORMABLE.TWO_STAGE False"),
        ("two-stage", "NUM_CLASSES 80, MODEL.DEFORMABLE.BOX_REFINE True, MODEL.DEFORMABLE.TWO_STAGE True"),
        ("dino", "NUM_CLASSES 80, MODEL.DETR.NUM_QUERIES 5"),
    ],
)
def test_the_report_says_which_config_fits(form, note):
    _, report = convert(official(form), source=source_of(form))
    assert any(note in each for each in report.notes)
    assert any(
        each == "class_embed: 91 rows of COCO's ids became 80 contiguous ones" for each in report.notes
    )


@pytest.mark.parametrize(
    ("form", "num_layers"),
    [("plain", 1), ("refine", 1), ("plain", 3), ("refine", 3), ("two-stage", 2), ("dino", 2)],
)
def test_every_tensor_of_our_models_has_an_official_place(form, num_layers):
    """Those of a ResNet apart, which the tiny models lack."""
    options = {"plain": DEFORMABLE, "refine": REFINE, "two-stage": TWO_STAGE, "dino": DINO}[form]
    ours = tiny_model("DETR", *options, "MODEL.DETR.DEC_LAYERS", num_layers).state_dict()
    restored, report = restore({"model": ours}, source=source_of(form))
    assert all(name.startswith("backbone.") for name, _ in report.dropped)
    again, _ = convert(resnet_of(official(form)) | restored["model"], source=source_of(form))
    expected = {name: tensor for name, tensor in ours.items() if not name.startswith("backbone.")}
    assert_same({n: t for n, t in again["model"].items() if not n.startswith("backbone.")}, expected)


def resnet_of(state):
    return {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}

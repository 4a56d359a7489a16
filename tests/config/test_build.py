"""Constructors name their arguments in errors; from a config, the errors name its keys."""

import inspect

import pytest
from detectron2.config import get_cfg
from helpers import PANOPTIC_RESNET18, tiny_cfg

from updetr_d2 import add_updetr_config
from updetr_d2.config.build import ARGUMENT_KEYS, arguments_as_keys, build_model
from updetr_d2.modeling.transformers import DeformableTransformer, Transformer


@pytest.mark.parametrize(
    ("meta_architecture", "options", "words"),
    [
        ("DETR", ("MODEL.DETR.NHEADS", 5), ["MODEL.DETR.HIDDEN_DIM (32)", "MODEL.DETR.NHEADS (5)"]),
        ("DETR", ("MODEL.DETR.IN_FEATURE", "res9"), ["MODEL.DETR.IN_FEATURE is 'res9'"]),
        (
            "UPDETR",
            ("MODEL.UPDETR.NUM_PATCHES", 7),
            ["MODEL.UPDETR.NUM_PATCHES (7)", "MODEL.DETR.NUM_QUERIES"],
        ),
        ("UPDETR", ("MODEL.UPDETR.MASK_RATIO", 1.0), ["MODEL.UPDETR.MASK_RATIO"]),
        ("OneShotDETR", ("MODEL.DETR.NUM_CLASSES", 2), ["MODEL.DETR.NUM_CLASSES is 2"]),
        (
            "PanopticDETR",
            (*PANOPTIC_RESNET18, "MODEL.MASK_HEAD.NUM_THING_CLASSES", 9),
            ["MODEL.MASK_HEAD.NUM_THING_CLASSES (9)"],
        ),
        (
            "DETR",
            ("MODEL.TRANSFORMER.NAME", "DeformableTransformer", "MODEL.DEFORMABLE.TWO_STAGE", True),
            ["MODEL.DEFORMABLE.TWO_STAGE needs MODEL.DEFORMABLE.BOX_REFINE"],
        ),
    ],
)
def test_a_refused_value_is_named_by_its_key(meta_architecture, options, words):
    with pytest.raises(ValueError) as error:
        build_model(tiny_cfg(meta_architecture, *options))
    assert all(word in str(error.value) for word in words)
    assert "`" not in str(error.value)


def test_without_a_config_the_argument_is_named():
    with pytest.raises(ValueError, match=r"`hidden_dim` \(30\) must be a multiple of `num_heads` \(4\)"):
        Transformer(hidden_dim=30, num_heads=4)
    with pytest.raises(ValueError, match="`two_stage` needs `box_refine`"):
        DeformableTransformer(two_stage=True)


def test_every_key_of_the_table_exists():
    cfg = get_cfg()
    add_updetr_config(cfg)
    for key in ARGUMENT_KEYS.values():
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_arguments_of_transformers_that_errors_may_name_are_in_the_table():
    for kind in (Transformer, DeformableTransformer):
        named = [line for line in inspect.getsource(kind).splitlines() if 'f"`' in line or '"`' in line]
        assert named
        assert all(word in ARGUMENT_KEYS for line in named for word in line.split("`")[1::2])


def test_errors_that_name_no_argument_stay_what_they_are():
    original = ValueError("a `word` that is no argument")
    with pytest.raises(ValueError) as error, arguments_as_keys():
        raise original
    assert error.value is original

"""A wrong config fails before anything is built, with one sentence that names the key."""

import pytest
from helpers import tiny_cfg

from updetr_d2.tasks import check_config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "DERT"),
        ("MODEL.BACKBONE.NAME", "build_no_backbone"),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("INPUT.FORMAT", "YUV"),
        ("MODEL.DETR.NUM_QUERIES", 0),
        ("MODEL.DETR.DEC_LAYERS", 0),
        ("MODEL.DETR.DROPOUT", 1.0),
        ("MODEL.CRITERION.EOS_COEF", 0.0),
        ("INPUT.QUERY_PATCH.BLUR_PROB", 1.5),
        ("INPUT.QUERY_PATCH.SIZE", 0),
        ("INPUT.QUERY_PATCH.BLUR_SIGMA", (2.0, 0.1)),
    ],
)
def test_wrong_value_is_one_sentence_with_the_key(key, value):
    cfg = valid_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    message = str(error.value)
    assert key in message
    assert "\n" not in message


def test_cuda_without_a_gpu_names_the_override(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = valid_cfg()
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"add MODEL\.DEVICE cpu"):
        check_config(cfg)


def test_batch_must_divide_among_processes(monkeypatch):
    monkeypatch.setattr("updetr_d2.data.loading.build.comm.get_world_size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"SOLVER\.IMS_PER_BATCH \(16\) must be a positive multiple .* \(3\)"
    ):
        check_config(valid_cfg())


def test_what_only_our_models_read_does_not_matter_to_detectron2s():
    cfg = tiny_cfg("DETR", "INPUT.CROP.ENABLED", True, "INPUT.MIN_SIZE_TEST", 0)
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.ENABLED"):
        check_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    check_config(cfg)


def valid_cfg():
    cfg = tiny_cfg("UPDETR")
    check_config(cfg)
    return cfg


def test_a_batch_for_another_number_of_processes_is_scaled_not_refused():
    """As Detectron2 does: 16 images for 8 processes are 6 for 3."""
    cfg = valid_cfg()
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 16, "SOLVER.REFERENCE_WORLD_SIZE", 8])
    check_config(cfg)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 3
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 16; .* SOLVER\.REFERENCE_WORLD_SIZE \(3\)"):
        check_config(cfg)

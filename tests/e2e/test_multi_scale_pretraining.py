"""UP-DETR's random patches on detectors with several levels, from the command line."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import SMALL_DETR, run_train_net, write_photos
from tiny_coco import forget_runs, write_tiny_coco

pytest.importorskip("timm")
pytestmark = pytest.mark.slow

SMALL = (
    *SMALL_DETR,
    *("MODEL.DETR.NUM_QUERIES", 12, "MODEL.DENOISING.NUM_QUERIES", 8, "MODEL.UPDETR.NUM_PATCHES", 3),
    *("INPUT.QUERY_PATCH.SIZE", 32, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 4, "SEED", 3),
    # A cosine of two iterations is not the beginning of one of four.
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    *("SOLVER.STEPS", "()", "SOLVER.EPOCH_STEPS", "()", "SOLVER.EPOCHS", 0),
)
RECIPES = {
    "custom/few_label_lite0_pretrain_patches.yaml": "custom/few_label_lite0.yaml",
    "pretrain/updetr_deformable_two_stage_r50_imagenet_5ep.yaml": (
        "coco/deformable_detr_two_stage_r50_coco_50ep.yaml"
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_pretraining_resumes_exactly_finds_patches_and_hands_over(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    registered = set(DatasetCatalog)
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 6)
    data = f"('folder:{tmp_path / 'photos'}',)"
    names = ("DATASETS.TRAIN", data, "DATASETS.TEST", data)

    def pretrain(output, iterations, flags=()):
        options = (*SMALL, *names, "SOLVER.MAX_ITER", iterations)
        metrics = run_train_net(recipe, tmp_path / output, *options, flags=flags)
        return metrics, torch.load(tmp_path / output / "model_final.pth", weights_only=True)["model"]

    try:
        metrics, whole = pretrain("whole", 4)
        assert {"loss_ce", "loss_bbox_0", "loss_ce_enc", "loss_bbox_dn", "loss_feature"} <= set(metrics)
        assert {"query_patch/AP", "query_patch/mIoU"} <= set(metrics)

        pretrain("stopped", 2)
        _, resumed = pretrain("stopped", 4, flags=["--resume"])
        assert set(whole) == set(resumed)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

        labels = f"('{write_tiny_coco(tmp_path)}',)"
        frozen = ("SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0.0)
        start = ("MODEL.WEIGHTS", tmp_path / "whole" / "model_final.pth", "MODEL.DETR.NUM_CLASSES", 0)
        metrics = run_train_net(
            RECIPES[recipe],
            tmp_path / "tuned",
            *(*SMALL, "DATASETS.TRAIN", labels, "DATASETS.TEST", labels, *start, *frozen),
            *("SOLVER.WEIGHT_DECAY_NORM", 0.0, "TEST.EVAL_PERIOD", 1),
        )
        assert "bbox/AP" in metrics
        tuned = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=True)["model"]
        taken = [
            name
            for name in tuned
            if name.startswith(("transformer.", "query_embed.", "bbox_embed.", "input_proj."))
        ]
        for name in taken:
            if not name.startswith("transformer.enc_out_class_embed."):
                torch.testing.assert_close(tuned[name], whole[name], atol=1e-9, rtol=0)
    finally:
        forget_runs(registered)

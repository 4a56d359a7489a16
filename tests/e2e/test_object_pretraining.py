"""Pre-training on proposals from the command line: two stages with denoising, resume, evaluation, fine-tuning."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import SMALL_DETR, run_train_net
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.cli import proposals
from updetr_d2.data.proposals import Proposals

pytestmark = pytest.mark.slow

SMALL = (
    *SMALL_DETR,
    *("MODEL.DETR.NUM_QUERIES", 10, "MODEL.DENOISING.NUM_QUERIES", 8, "MODEL.DETR.ENC_LAYERS", 1),
    *("INPUT.QUERY_PATCH.SIZE", 32, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 4, "SEED", 3),
    *("SOLVER.STEPS", "()", "SOLVER.EPOCH_STEPS", "()", "SOLVER.EPOCHS", 0),
)


def pretrain(output, data, boxes, *options, flags=()):
    names = ("DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", f"('{data}',)")
    file = ("INPUT.PROPOSALS.FILE", boxes, "INPUT.PROPOSALS.MIN_BOXES", 1)
    recipe = "pretrain/clusters_dino_r50_imagenet_5ep.yaml"
    return run_train_net(recipe, output, *SMALL, *names, *file, *options, flags=flags)


def weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)


def test_pretraining_resumes_exactly_is_evaluated_and_gives_all_but_its_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    registered = set(DatasetCatalog)
    data, boxes = write_tiny_coco(tmp_path), str(tmp_path / "boxes.npz")
    options = ("--source", "coco", "--file", str(tmp_path / "a.json"))
    assert proposals.main([data, "--output", boxes, *options]) == 0
    # Clusters as a network would give them.
    made = Proposals.load(boxes)
    made.num_clusters, made.clusters = 3, np.array([0, 2, 1, 1], np.int32)
    made.save(boxes)
    try:
        metrics = pretrain(tmp_path / "whole", data, boxes, "SOLVER.MAX_ITER", 4)
        assert {"loss_ce", "loss_ce_enc", "loss_bbox_dn", "loss_feature"} <= set(metrics)
        assert 0 <= metrics["class_agnostic/AR@10"] <= 100
        assert (tmp_path / "whole" / "config.yaml").read_text().count("NUM_CLASSES: 3\n") >= 1

        pretrain(tmp_path / "stopped", data, boxes, "SOLVER.MAX_ITER", 2)
        pretrain(tmp_path / "stopped", data, boxes, "SOLVER.MAX_ITER", 4, flags=["--resume"])
        whole, resumed = (weights(tmp_path / name)["model"] for name in ("whole", "stopped"))
        assert set(whole) == set(resumed)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

        names = ("DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", f"('{data}',)")
        start = ("MODEL.WEIGHTS", tmp_path / "whole" / "model_final.pth", "MODEL.DETR.NUM_CLASSES", 0)
        frozen = ("SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 1e-12, "SOLVER.WEIGHT_DECAY", 0.0)
        decay = ("SOLVER.WEIGHT_DECAY_NORM", 0.0)
        metrics = run_train_net(
            "coco/dino_r50_4scale_coco_12ep.yaml",
            tmp_path / "tuned",
            *(*SMALL, *names, *start, *frozen, *decay, "TEST.EVAL_PERIOD", 1),
        )
        assert "bbox/AP" in metrics
        tuned = weights(tmp_path / "tuned")["model"]
        classes = ("class_embed.", "transformer.enc_out_class_embed.", "label_enc.")
        for name, tensor in tuned.items():
            if name.startswith(classes):
                assert tensor.shape != whole[name].shape
            else:
                torch.testing.assert_close(tensor, whole[name], atol=1e-9, rtol=0)
    finally:
        forget_runs(registered)

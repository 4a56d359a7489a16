"""Which detectors are compared with which starts."""

from updetr_d2.comparison.contestants import choose_starts, contestants_of
from updetr_d2.comparison.starts import FASTER_RCNN, FEW_LABEL


def test_starts_go_to_the_detectors_that_they_suit():
    ours = "custom/few_label_lite0_256px.yaml"
    names = ("cnn", "pretrained", "coco", "teacher", "pretrained_teacher")
    weights = {"weights": "cnn.pth", "coco_weights": "coco.pth"}

    def contestants(detectors, pretrain_config=None, own=()):
        starts = choose_starts(names, weights=weights, unlabeled="folder:photos", own=own)
        found = contestants_of(detectors, starts=starts, pretrain_config=pretrain_config, all_must_suit=False)
        return {(each.detector, each.start_name) for each in found}

    # Pre-training is that of one detector, a teacher of every DETR.
    assert contestants([FASTER_RCNN, ours, FEW_LABEL], own=[("mine", __file__)]) == {
        *((detector, "cnn") for detector in (FASTER_RCNN, ours, FEW_LABEL)),
        *((detector, "teacher") for detector in (ours, FEW_LABEL)),
        *((FEW_LABEL, start) for start in ("pretrained", "pretrained_teacher")),
        *((FASTER_RCNN, start) for start in ("coco", "mine")),
    }
    pretraining = "custom/few_label_lite0_pretrain_clusters.yaml"
    assert contestants([ours, FASTER_RCNN], pretraining) == {
        *((ours, start) for start in names),
        (FASTER_RCNN, "cnn"),
    }

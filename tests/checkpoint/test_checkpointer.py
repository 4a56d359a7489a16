"""What a checkpoint gives to a model of another kind, and which one a run goes on from."""

import logging
import pickle

import numpy as np
import pytest
import torch
from helpers import RESNET18, tiny_cfg, tiny_model

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer, place_cnn
from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.checkpoint.safe_loading import CheckpointError
from updetr_d2.modeling.meta_arch import UPDETR

LEFT_OUT = ("class_embed.", "patch2query.", "feature_align.")


def equal(a, b):
    return a.shape == b.shape and torch.equal(a, b)


def test_fine_tuning_takes_all_of_pretraining_but_three_modules(tmp_path):
    """Two classes as in pre-training: the class head fits by its shape and must not be taken all the same."""
    pretrained = tiny_model("UPDETR")
    UPDETRCheckpointer(pretrained, str(tmp_path)).save("pretrained")
    model = tiny_model("DETR", "MODEL.DETR.NUM_CLASSES", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(str(tmp_path / "pretrained.pth"))
    theirs = pretrained.state_dict()
    for name, tensor in model.state_dict().items():
        source = before if name.startswith("class_embed.") else theirs
        assert equal(tensor, source[name]), name
    assert checkpointer.loaded_keys == {name for name in theirs if not name.startswith(LEFT_OUT)}


def test_tensors_that_are_found_by_similar_names_count_as_loaded(tmp_path):
    """As in the files of Detectron2's model zoo."""
    model = tiny_model("DETR", *RESNET18)
    theirs = {
        "conv1_w": np.random.rand(64, 3, 7, 7).astype("float32"),
        "fc1000_w": np.zeros((9, 9), "float32"),
    }
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(theirs))
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(str(tmp_path / "R-18.pkl"))
    assert checkpointer.loaded_keys == {"backbone.stem.conv1.weight"}
    np.testing.assert_array_equal(model.backbone.stem.conv1.weight.detach(), theirs["conv1_w"])


def test_a_run_of_another_model_does_not_go_on(tmp_path):
    UPDETRCheckpointer(tiny_model("UPDETR"), str(tmp_path)).save("model_0000009")
    other = UPDETRCheckpointer(tiny_model("DETR"), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"is of a run of UPDETR.*with DETR: choose another OUTPUT_DIR"):
        other.resume_or_load("", resume=True)


def test_missing_weights_name_the_key_and_the_way_out():
    with pytest.raises(
        FileNotFoundError, match=r"MODEL\.WEIGHTS: there is no file 'weights/none\.pth'.*'' starts"
    ):
        UPDETRCheckpointer(tiny_model("DETR")).load("weights/none.pth")


def test_pretraining_goes_on_with_all_of_itself(tmp_path):
    pretrained, model = tiny_model("UPDETR"), tiny_model("UPDETR")
    UPDETRCheckpointer(pretrained, str(tmp_path)).save("pretrained")
    UPDETRCheckpointer(model).load(str(tmp_path / "pretrained.pth"))
    theirs = pretrained.state_dict()
    assert all(equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_fine_tuned_detector_keeps_its_class_head(tmp_path):
    trained, model = tiny_model("DETR"), tiny_model("DETR")
    UPDETRCheckpointer(trained, str(tmp_path)).save("trained")
    UPDETRCheckpointer(model).load(str(tmp_path / "trained.pth"))
    assert equal(model.class_embed.weight, trained.class_embed.weight)


@pytest.mark.parametrize(
    ("options", "homes"),
    [
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), {"res4": "backbone.", "res5": "roi_heads."}),
        (
            (
                *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
                *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
                *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
                *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
                *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
                *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            ),
            {"res4": "backbone.bottom_up.", "res5": "backbone.bottom_up."},
        ),
    ],
    ids=["C4", "FPN"],
)
def test_faster_rcnn_takes_every_stage_of_the_cnn(tmp_path, options, homes):
    cnn = tiny_model("DETR", *RESNET18, "MODEL.RESNETS.DEPTH", 50).backbone
    weights = {f"backbone.{name}": torch.randn_like(tensor) for name, tensor in cnn.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "cnn.pth")
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.MASK_ON", False)
    rcnn = tiny_model("GeneralizedRCNN", *resnet, *options)
    checkpointer = UPDETRCheckpointer(rcnn)
    checkpointer.load(str(tmp_path / "cnn.pth"))
    state = rcnn.state_dict()
    for stage, home in homes.items():
        assert equal(state[f"{home}{stage}.1.conv2.weight"], weights[f"backbone.{stage}.1.conv2.weight"])
    assert len(checkpointer.loaded_keys) == len(weights)


def test_names_that_the_model_has_stay_as_they_are():
    weights = {"backbone.res5.0.w": 1, "backbone.other": 2, "transformer.w": 3}
    names = {"backbone.res5.0.w", "roi_heads.res5.0.w", "transformer.w"}
    assert place_cnn(weights, names) == weights


class Counter:
    """A state beside the model, as the trainer is one."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def run_with_checkpoints(folder, *iterations):
    model = tiny_model("DETR")
    for iteration in iterations:
        checkpointer = UPDETRCheckpointer(model, str(folder), trainer=Counter(iteration))
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def resume(folder):
    counter = Counter(None)
    checkpointer = UPDETRCheckpointer(tiny_model("DETR"), str(folder), trainer=counter)
    checkpointer.resume_or_load("", resume=True)
    return counter.value, checkpointer.resumed_from


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    run_with_checkpoints(tmp_path, 1, 3)
    assert resume(tmp_path) == (3, str(tmp_path / "model_0000003.pth"))
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # a user may go back
    assert resume(tmp_path)[0] == 1


def test_damaged_last_checkpoint_gives_way_to_the_newest_whole_one_with_a_warning(tmp_path, caplog):
    run_with_checkpoints(tmp_path, 1, 3, 5, 7)
    cut_short(tmp_path / "model_0000007.pth")
    content = bytearray((tmp_path / "model_0000005.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model_0000005.pth").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert resume(tmp_path)[0] == 3
    assert "model_0000007.pth is damaged" in caplog.text
    assert "resuming from" in caplog.text
    assert "model_0000003.pth" in caplog.text


@pytest.mark.parametrize("content", [b"", b"model_9999999.pth", b"\xff\x00garbage"])
def test_damaged_name_of_the_last_checkpoint_gives_way_to_the_newest_file(tmp_path, content):
    run_with_checkpoints(tmp_path, 1, 3)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert resume(tmp_path)[0] == 3


def test_nothing_but_damaged_checkpoints_is_an_error_that_names_the_folder(tmp_path):
    run_with_checkpoints(tmp_path, 1, 3)
    cut_short(tmp_path / "model_0000001.pth")
    cut_short(tmp_path / "model_0000003.pth")
    with pytest.raises(
        CheckpointError, match=r"OUTPUT_DIR '.*' can be resumed.*start again without --resume"
    ):
        resume(tmp_path)


def test_a_new_run_starts_from_the_given_weights_alone(tmp_path):
    assert resume(tmp_path) == (None, None)
    run_with_checkpoints(tmp_path, 3)
    counter = Counter(None)
    checkpointer = UPDETRCheckpointer(tiny_model("DETR"), str(tmp_path), trainer=counter)
    checkpointer.resume_or_load("", resume=False)
    assert (counter.value, checkpointer.resumed_from) == (None, None)


def test_a_failed_save_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    run_with_checkpoints(tmp_path, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SaveError, match=r"model_0000003\.pth was not written \(No space left on device\)"):
        run_with_checkpoints(tmp_path, 3)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert resume(tmp_path)[0] == 1


class OtherPretext(UPDETR):
    """Of a plugin, not registered here: what it keeps to itself is known from the checkpoint alone."""

    pretraining_only = (*UPDETR.pretraining_only, "pretext_head")

    def __init__(self, cfg):
        super().__init__(cfg)
        self.pretext_head = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("receiver", "kept_random"),
    [
        (("DETR", "MODEL.DETR.NUM_CLASSES", 2), {"class_embed"}),
        (("OneShotDETR", "MODEL.DETR.NUM_CLASSES", 1), {"class_embed"}),
        (("UPDETR",), set()),
    ],
)
def test_a_pretext_of_a_plugin_keeps_its_head_to_itself(tmp_path, receiver, kept_random):
    """As many classes as the detector has, and still not its class head; a OneShotDETR takes patch2query."""
    pretrained = OtherPretext(tiny_cfg("UPDETR"))
    UPDETRCheckpointer(pretrained, str(tmp_path)).save("pretrained")
    written = torch.load(tmp_path / "pretrained.pth", weights_only=True)
    assert (written["meta_architecture"], written["task"]) == ("OtherPretext", "pretraining")
    model = tiny_model(*receiver)
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(str(tmp_path / "pretrained.pth"))
    missing = {name.split(".")[0] for name in checkpointer.parameters_not_loaded()}
    assert missing == kept_random
    assert not any(key.startswith("pretext_head") for key in checkpointer.loaded_keys)


@pytest.mark.parametrize("name", ["UPDETR", None], ids=["before version 0.2", "official"])
def test_older_pretraining_checkpoints_are_known_by_name_or_by_their_modules(tmp_path, name):
    state = tiny_model("UPDETR").state_dict()
    torch.save({"model": state} | ({"meta_architecture": name} if name else {}), tmp_path / "old.pth")
    checkpointer = UPDETRCheckpointer(tiny_model("DETR", "MODEL.DETR.NUM_CLASSES", 2))
    checkpointer.load(str(tmp_path / "old.pth"))
    missing = {name.split(".")[0] for name in checkpointer.parameters_not_loaded()}
    assert missing == {"class_embed"}


def test_older_one_shot_checkpoints_are_no_pretraining(tmp_path):
    options = ("MODEL.DETR.NUM_CLASSES", 1)
    trained, model = tiny_model("OneShotDETR", *options), tiny_model("OneShotDETR", *options)
    torch.save({"model": trained.state_dict(), "meta_architecture": "OneShotDETR"}, tmp_path / "old.pth")
    UPDETRCheckpointer(model).load(str(tmp_path / "old.pth"))
    assert equal(model.class_embed.weight, trained.class_embed.weight)


@pytest.mark.parametrize("described", [True, False])
def test_a_transformer_of_another_size_is_said_with_the_key(tmp_path, caplog, described):
    runs = {
        size: {"config": {"MODEL.DETR.DIM_FEEDFORWARD": size, "SEED": size}, "classes": []}
        for size in (64, 96)
    }
    saver = UPDETRCheckpointer(tiny_model("DETR", "MODEL.DETR.DIM_FEEDFORWARD", 64), str(tmp_path))
    saver.run = runs[64] if described else None
    saver.save("model")
    loader = UPDETRCheckpointer(tiny_model("DETR", "MODEL.DETR.DIM_FEEDFORWARD", 96))
    loader.run = runs[96]
    loader.load(str(tmp_path / "model.pth"), checkpointables=[])
    (message,) = [each.message for each in caplog.records if "another shape" in each.message]
    assert "linear1.weight (64x" in message and "start from random values" in message
    assert ("MODEL.DETR.DIM_FEEDFORWARD was 64 and is 96" in message) == described


def test_a_head_of_other_classes_is_no_reason_to_warn(tmp_path, caplog):
    UPDETRCheckpointer(tiny_model("DETR", "MODEL.DETR.NUM_CLASSES", 2), str(tmp_path)).save("model")
    UPDETRCheckpointer(tiny_model("DETR", "MODEL.DETR.NUM_CLASSES", 3)).load(str(tmp_path / "model.pth"))
    assert "another shape" not in caplog.text


def test_a_file_that_is_no_checkpoint_is_named_with_the_key(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        CheckpointError, match=r"^MODEL\.WEIGHTS: .*photo\.jpg was not loaded: it is damaged or not"
    ):
        UPDETRCheckpointer(tiny_model("DETR")).load(str(tmp_path / "photo.jpg"))

"""Self-training: each round's boxes come from the model of the round before; what is done is not done again."""

import pytest

from updetr_d2.cli import self_train


def args(tmp_path, *options):
    command = [str(tmp_path), "--output", str(tmp_path / "out"), "--config-file", "x.yaml", *options]
    return self_train.get_parser().parse_intermixed_args(command)


def option(command, name):
    return command[command.index(name) + 1]


def finish(tmp_path, number, *files):
    for name in files:
        path = tmp_path / "out" / f"round_{number}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_first_round_takes_boxes_of_a_source(tmp_path):
    parsed = args(tmp_path, "--cluster", "8", "MODEL.WEIGHTS", "cnn.pth")
    boxes, training = self_train.round_commands(parsed, 1)
    assert (boxes[0], option(boxes, "--source"), option(boxes, "--config-file")) == (
        "proposals",
        "features",
        "x.yaml",
    )
    assert (option(boxes, "--cluster"), option(boxes, "MODEL.WEIGHTS")) == ("8", "cnn.pth")
    assert (training[0], option(training, "MODEL.WEIGHTS")) == ("train", "cnn.pth")
    assert option(training, "DATASETS.TRAIN") == f"('folder:{tmp_path}',)"
    assert option(training, "INPUT.PROPOSALS.FILE") == option(boxes, "--output")


def test_the_second_round_takes_boxes_of_the_first_model_and_trains_it_on(tmp_path):
    boxes, training = self_train.round_commands(args(tmp_path, "MODEL.WEIGHTS", "cnn.pth"), 2)
    model = tmp_path / "out" / "round_1" / "model"
    assert option(boxes, "--source") == "model"
    assert option(boxes, "--config-file") == str(model / "config.yaml")
    assert option(boxes, "MODEL.WEIGHTS") == str(model / "model_final.pth")
    assert "cnn.pth" not in boxes
    assert training[-2:] == ["MODEL.WEIGHTS", str(model / "model_final.pth")]  # the last one counts


@pytest.mark.parametrize(
    ("files", "left"), [(["boxes.npz"], ["train"]), (["boxes.npz", "model/model_final.pth"], [])]
)
def test_what_is_done_is_not_done_again(tmp_path, files, left):
    finish(tmp_path, 1, *files)
    assert [command[0] for command in self_train.round_commands(args(tmp_path), 1)] == left


def test_it_stops_at_the_first_step_that_fails(tmp_path, monkeypatch):
    ran = []

    class Failed:
        returncode = 75

    monkeypatch.setattr(self_train.subprocess, "run", lambda command: ran.append(command) or Failed)
    assert (
        self_train.main([str(tmp_path), "--output", str(tmp_path / "out"), "--config-file", "x.yaml"]) == 75
    )
    assert len(ran) == 1
    assert ran[0][3] == "proposals"

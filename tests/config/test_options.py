import pytest
from helpers import tiny_cfg

from updetr_d2.config.files import merge_config_file
from updetr_d2.config.options import merge_options


def test_it_merges_keys_and_values_as_a_command_line_has_them():
    cfg = tiny_cfg("DETR")
    merge_options(cfg, ["SOLVER.BASE_LR", "0.5", "DATASETS.TEST", "('folder:x',)", "SEED", 7])
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TEST, cfg.SEED) == (0.5, ("folder:x",), 7)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("MODEL.DETR.NUM_QUERYS", "MODEL.DETR.NUM_QUERIES"),
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("solver.base_lr", ""),
    ],
)
def test_of_a_misspelt_key_it_says_which_are_similar(wrong, meant):
    with pytest.raises(ValueError, match=f"Non-existent key: {wrong}") as error:
        merge_options(tiny_cfg("DETR"), ["SEED", "1", wrong, "2"])
    words = str(error.value).partition("; similar to ")[2]
    assert (
        words.startswith(f"{wrong}: ") and meant in words.split(": ")[1].split(", ") if meant else not words
    )


def test_of_one_in_a_config_file_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("SOLVER:\n  MAX_ITERS: 5\nVERSION: 2\n")
    with pytest.raises(
        ValueError, match=r"mine\.yaml: .*key: SOLVER.MAX_ITERS; similar .*: SOLVER.MAX_ITER(,|$)"
    ):
        merge_config_file(tiny_cfg("DETR"), str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("options", [["SEED"], ["SEED", "1", "SOLVER.BASE_LR"]])
def test_a_key_without_a_value_is_no_misspelling(options):
    with pytest.raises(ValueError, match="not KEY VALUE pairs") as error:
        merge_options(tiny_cfg("DETR"), options)
    assert "similar" not in str(error.value)


def test_a_value_of_another_type_is_an_error():
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN; a tuple of one name has a comma"):
        merge_options(tiny_cfg("DETR"), ["DATASETS.TRAIN", "coco:a.json@b"])
    with pytest.raises(ValueError, match=r"SOLVER.BASE_LR"):
        merge_options(tiny_cfg("DETR"), ["SOLVER.BASE_LR", "fast"])

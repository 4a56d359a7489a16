"""Proposals of whole data sets: every source, damaged images, interruptions, recall."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import RESNET18, save_tiny_model
from PIL import Image

from updetr_d2.cli import proposals as cli
from updetr_d2.data.proposals import PROPOSAL_REGISTRY, Proposals, SourceOptions
from updetr_d2.data.proposals.making import make_proposals
from updetr_d2.data.proposals.recall import recall_of_first_boxes
from updetr_d2.data.proposals.source import ProposalMapper, ProposalSource


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def dataset_dicts(folder):
    return [{"file_name": str(path), "image_id": path.name} for path in sorted(folder.iterdir())]


def run(folder, output, *options):
    return cli.main([str(folder), "--output", str(output), *options])


class Interrupted(Exception):
    pass


class CountingSource(ProposalSource):
    """Random boxes; remembers the images, and stops at one of them."""

    def __init__(self, stop_at=None):
        super().__init__(SourceOptions(num_boxes=5))
        self.random = PROPOSAL_REGISTRY.get("random")(self.options)
        self.stop_at = stop_at
        self.seen = []

    def __call__(self, image, dataset_dict):
        self.seen.append(dataset_dict["image_id"])
        if len(self.seen) == self.stop_at:
            raise Interrupted
        return self.random(image, dataset_dict)


def make(photos, output, source):
    return make_proposals(
        dataset_dicts(photos),
        output,
        description={"source": "random"},
        mapper=lambda: ProposalMapper(source, num_boxes=5),
        part_size=2,
    )


def test_an_interrupted_run_goes_on_where_it_was(photos, tmp_path):
    whole, num_skipped = make(photos, tmp_path / "whole.npz", CountingSource())
    assert (len(whole), num_skipped) == (7, 1)
    with pytest.raises(Interrupted):
        make(photos, tmp_path / "boxes.npz", CountingSource(stop_at=4))
    assert not (tmp_path / "boxes.npz").exists()
    source = CountingSource()
    resumed, num_skipped = make(photos, tmp_path / "boxes.npz", source)
    assert source.seen == ["2.png", "3.png", "4.png", "5.png", "6.png"]  # two images were kept
    assert num_skipped == 1
    for name in ("keys", "sizes", "ends", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert not (tmp_path / "boxes.npz.parts").exists()


def test_parts_of_other_options_are_refused(photos, tmp_path, capsys):
    with pytest.raises(Interrupted):
        make(photos, tmp_path / "boxes.npz", CountingSource(stop_at=4))
    assert run(photos, tmp_path / "boxes.npz", "--source", "random") == 1
    assert "other images or options: delete it" in capsys.readouterr().err


def test_a_second_process_does_not_write_the_same_file(photos, tmp_path, capsys):
    hold = "import sys; from updetr_d2.engine.run_lock import lock_output_dir; lock_output_dir(sys.argv[1]); "
    hold += "print(1, flush=True); sys.stdin.read()"
    parts = tmp_path / "boxes.npz.parts"
    parts.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(parts)], **pipes) as first:
        first.stdout.readline()
        assert run(photos, tmp_path / "boxes.npz", "--source", "random") == 1
        assert f"--output '{parts}' is in use by process {first.pid}" in capsys.readouterr().err
    assert run(photos, tmp_path / "boxes.npz", "--source", "random") == 0


def test_loader_processes_make_the_same_boxes(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "a.npz", "--source", "random", "--boxes", "4", "--show", "2") == 0
    assert "7 images, 28 boxes, 4 to 4 an image; 1 images skipped" in capsys.readouterr().out
    assert len(list((tmp_path / "a.npz.pictures").iterdir())) == 2
    assert run(photos, tmp_path / "b.npz", "--source", "random", "--boxes", "4", "--workers", "2") == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert run(photos, tmp_path / "c.npz", "--source", "random", "--boxes", "4", "--seed", "1") == 0
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()


@pytest.mark.parametrize("form", ["results", "annotations"])
def test_boxes_of_a_coco_file(photos, tmp_path, form):
    rows = [
        {"image_id": 3, "bbox": [1, 2, 10, 20], "score": 0.2, "category_id": 1},
        {"image_id": 3, "bbox": [5, 5, 20, 20], "score": 0.9, "category_id": 2},
        {"image_id": 4, "bbox": [0, 0, 100, 100], "score": 0.5, "category_id": 1},
    ]
    content = rows
    if form == "annotations":
        images = [{"id": 3, "file_name": "somewhere/1.png"}, {"id": 4, "file_name": "2.png"}]
        content = {"images": images, "annotations": rows}
    (tmp_path / "file.json").write_text(json.dumps(content))
    source = PROPOSAL_REGISTRY.get("coco")(SourceOptions(file=str(tmp_path / "file.json")))
    mapper = ProposalMapper(source, num_boxes=5, min_score=0.3 if form == "results" else 0)
    name = {"file_name": str(photos / "1.png"), "image_id": 3 if form == "results" else "1.png"}
    sample = mapper(name)
    boxes = sample["boxes"] / 65535 * [48, 40, 48, 40]
    expected = [[5, 5, 25, 25], [1, 2, 11, 22]][: 1 if form == "results" else 2]
    np.testing.assert_allclose(boxes, expected, atol=0.01)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '[{"image_id": 1}]', '[{"image_id": 1, "bbox": "x"}]'])
def test_other_json_files_are_an_error(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match="neither results nor annotations"):
        PROPOSAL_REGISTRY.get("coco")(SourceOptions(file=str(tmp_path / "file.json")))


def test_selective_search_finds_what_stands_out():
    pytest.importorskip("cv2.ximgproc", reason="OpenCV lacks its contributed modules here")
    image = np.full((96, 128, 3), 60, np.uint8)
    image[24:72, 32:64] = (230, 40, 40)
    boxes, scores = PROPOSAL_REGISTRY.get("selective_search")(SourceOptions())(image, {})
    assert len(boxes) == len(scores) and np.all(np.diff(scores) < 0)
    assert np.abs(boxes - [32, 24, 64, 72]).max(axis=1).min() <= 3  # the search is on 128 x 128 px


def test_selective_search_says_what_it_needs():
    import cv2

    if hasattr(cv2, "ximgproc"):
        pytest.skip("OpenCV has its contributed modules here")
    with pytest.raises(ValueError, match="opencv-contrib-python-headless"):
        PROPOSAL_REGISTRY.get("selective_search")(SourceOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nothing"], "--source is 'nothing'; use one of"),
        (["--source", "features"], "needs a network: name its --config-file"),
        (["--source", "coco"], "name it with --file"),
        (["--source", "random", "--boxes", "0"], "must be positive"),
    ],
)
def test_wrong_options_are_one_sentence(photos, tmp_path, capsys, options, message):
    assert run(photos, tmp_path / "boxes.npz", *options) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error


def test_images_with_the_same_id_are_refused(photos, tmp_path):
    twice = [dict(each, image_id=1) for each in dataset_dicts(photos)]
    with pytest.raises(ValueError, match=r"0.png and .*1.png have the same image_id 1"):
        make_proposals(twice, tmp_path / "boxes.npz", description={"source": ""}, mapper=CountingSource)


def test_recall_counts_objects_that_the_first_boxes_overlap(photos, tmp_path):
    """Two boxes an image: the second of 0.png is its object; that of 1.png is missed; 2.png has none."""
    results = [
        {"image_id": "0.png", "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": "0.png", "bbox": [20, 20, 10, 10], "score": 0.8},
        {"image_id": "1.png", "bbox": [0, 0, 10, 10], "score": 0.8},
    ]
    (tmp_path / "file.json").write_text(json.dumps(results))
    options = ("--source", "coco", "--file", str(tmp_path / "file.json"))
    assert run(photos, tmp_path / "boxes.npz", *options) == 0
    labeled = dataset_dicts(photos)
    for each in labeled[:2]:
        each["annotations"] = [{"bbox": [20, 20, 10, 8], "bbox_mode": 1}]
    proposals = Proposals.load(tmp_path / "boxes.npz")
    assert recall_of_first_boxes(proposals, labeled, numbers=(1, 2)) == {1: 0.0, 2: 0.5}
    assert recall_of_first_boxes(proposals, dataset_dicts(photos)) == {}


def test_clusters_of_a_network_s_features_lie_beside_the_boxes(photos, tmp_path):
    save_tiny_model(tmp_path, "DETR", *RESNET18)
    network = ["--config-file", str(tmp_path / "config.yaml"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    options = ("--source", "features", "--boxes", "4", "--cluster", "3", "--crop", "64")
    assert run(photos, tmp_path / "boxes.npz", *options, "--show", "1", *network) == 0
    made = Proposals.load(tmp_path / "boxes.npz")
    assert (len(made), made.num_clusters, len(made.clusters)) == (7, 3, len(made.boxes))
    assert set(made.clusters.tolist()) == {0, 1, 2}
    assert run(photos, tmp_path / "again.npz", *options, "--workers", "1", *network) == 0
    assert (tmp_path / "boxes.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    plain = ("--source", "features", "--boxes", "4")
    assert run(photos, tmp_path / "plain.npz", *plain, *network) == 0
    np.testing.assert_array_equal(Proposals.load(tmp_path / "plain.npz").boxes, made.boxes)


@pytest.mark.parametrize("architecture", ["ObjectDETR", "UPDETR"])
def test_boxes_of_a_pretrained_model_are_what_it_finds(photos, tmp_path, architecture):
    save_tiny_model(tmp_path, architecture, "MODEL.DETR.NUM_CLASSES", 2)
    network = ["--config-file", str(tmp_path / "config.yaml"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    options = ("--source", "model", "--boxes", "5", "--min-score", "0.01")
    assert run(photos, tmp_path / "boxes.npz", *options, *network) == 0
    made = Proposals.load(tmp_path / "boxes.npz")
    assert len(made) == 7
    for path in photos.glob("?.png"):
        found = made.find(path.name)
        assert 1 <= len(found.boxes) <= 5
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.scores >= 0.01) & (found.scores <= 1)).all()

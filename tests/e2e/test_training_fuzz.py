"""Annotation files of any structure: a run trains and evaluates, or a sentence refuses it at its start."""

import copy
import json
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from helpers import PANOPTIC_RESNET18, ids_to_rgb, tiny_cfg
from PIL import Image
from tiny_coco import forget_runs

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.tasks import task_of
from updetr_d2.utils.cache import CACHE_VARIABLE

pytestmark = pytest.mark.slow

SIDE = 32
CLASSES = ("cat", "dog", "sky")
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 10**30, float("nan"), float("inf"), "", "0", "x", "a\0b", "1e999"),
    *(
        [],
        [[]],
        {},
        [0],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        {"counts": [9], "size": [3, 3]},
        "x" * 300,
        "../0.png",
    ),
)
OPTIONS = (
    *("INPUT.MIN_SIZE_TRAIN", (SIDE,), "INPUT.MIN_SIZE_TEST", SIDE, "INPUT.DETR_CROP.PROB", 0.0),
    *("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0),
    *("DATALOADER.READ_RETRIES", 0, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 1),
    *("MODEL.DETR.NUM_CLASSES", 0, "MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0, "TEST.VIS_IMAGES", 0),
)


def draw_images(folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}{suffix}")


def nested(value: object) -> Iterator[tuple[dict | list, str | int]]:
    """Every place of a JSON value, as the container and the key or index in it."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from nested(value[key])


def mutate_json(content: dict, rng: np.random.Generator) -> dict:
    """One to three places replaced, removed, doubled, or written in another type."""
    for _ in range(rng.integers(1, 4)):
        places = list(nested(content))
        container, key = places[rng.integers(len(places))]
        old = copy.deepcopy(container[key])
        match rng.integers(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, list):
                container.append(old)
            case 2:
                container[key] = str(old)
            case 3:
                container[key] = [old]
            case 4 if isinstance(old, int | float):
                container[key] = old * float(rng.choice([-1.0, 1.0, 0.01, 1e6])) + float(rng.choice([0, 0.5]))
            case _:
                container[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return content


def write_coco(root: Path, rng: np.random.Generator) -> str:
    images = [{"id": i + 1, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(3)]
    box = {"bbox": [2, 3, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[2, 3, 22, 3, 22, 23, 2, 23]]}
    annotations = [{"id": i + 1, "image_id": 1 + i % 3, "category_id": 1 + i % 2, **box} for i in range(5)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "a.json").write_text(json.dumps(mutate_json(content, rng)))
    return f"coco:{root}/a.json@{root}/images"


def write_panoptic(root: Path, rng: np.random.Generator) -> str:
    (root / "png").mkdir()
    ids = np.zeros((SIDE, SIDE), np.int64)
    ids[:, 10:20], ids[:, 20:] = 7, 300
    for i in range(3):
        Image.fromarray(ids_to_rgb(ids)).save(root / "png" / f"{i}.png")
    segments = [
        {"id": 7, "category_id": 1, "area": 320, "iscrowd": 0},
        {"id": 300, "category_id": 5, "area": 384, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(3)],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 5, "name": "sky", "isthing": 0}],
    }
    content = mutate_json(copy.deepcopy(content), rng)
    (root / "a.json").write_text(json.dumps(content))
    if rng.random() < 0.2:
        (root / "png" / "1.png").write_bytes(rng.bytes(100))
    return f"coco_panoptic:{root}/a.json@{root}/png@{root}/images"


def write_voc(root: Path, rng: np.random.Generator) -> str:
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "images").rename(root / "JPEGImages")
    for i in range(3):
        tree = ET.fromstring(
            f"<annotation><size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            + "".join(
                f"<object><name>{name}</name><pose>Left</pose><difficult>{i % 2}</difficult>"
                f"<bndbox><xmin>{3 + i}</xmin><ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object>"
                for name in CLASSES[:2]
            )
            + "</annotation>"
        )
        if i == 1:
            for _ in range(rng.integers(1, 4)):
                mutate_xml(tree, rng)
        text = ET.tostring(tree, encoding="unicode")
        cut = rng.random() < 0.03
        (root / "Annotations" / f"{i}.xml").write_text(text[: len(text) // 2] if cut else text)
    lines = ["0", "1", "2"]
    if rng.random() < 0.2:
        lines[rng.integers(3)] += str(rng.choice(["  1", " -1", "\n\n", "\t0 0", "9"]))
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(lines))
    name = f"fuzz_voc_{root.name}"
    register_pascal_voc(name, str(root), "train", 2012, class_names=CLASSES)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    return name


def mutate_xml(tree: ET.Element, rng: np.random.Generator) -> None:
    elements = list(tree.iter())
    parent = elements[rng.integers(len(elements))]
    child = parent[rng.integers(len(parent))] if len(parent) else None
    match rng.integers(5):
        case 0 if child is not None:
            parent.remove(child)
        case 1 if child is not None:
            parent.append(copy.deepcopy(child))
        case 2:
            parent.tag = str(rng.choice(["object", "name", "Name", "bndbox", "part", "x"]))
        case 3 if not len(parent):
            parent.text = str(rng.choice(["2.7", " 4 ", "3,5", "1e1", "31.999"]))
        case _:
            parent.text = str(rng.choice(["", "0", "-5", "nan", "inf", "1e30", "x", "2.5", "99", "\u00a0"]))


KINDS = {"coco": (write_coco, ".png"), "panoptic": (write_panoptic, ".png"), "voc": (write_voc, ".jpg")}


def train_and_evaluate(kind: str, root: Path, rng: np.random.Generator) -> str | None:
    """One step and an evaluation.

    Returns:
        None, or the sentence that the run was refused with at its start.
    """
    write, suffix = KINDS[kind]
    draw_images(root / "images", suffix)
    name = write(root, rng)
    options = ("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(root / "out"), *OPTIONS)
    if kind == "panoptic":
        more = ("MODEL.MASK_ON", True, "MODEL.MASK_HEAD.NUM_THING_CLASSES", 0)
        cfg = tiny_cfg("PanopticDETR", *PANOPTIC_RESNET18, *options, *more)
    else:
        cfg = tiny_cfg("DETR", *options)
    try:
        ensure_registered([name])
        cfg = task_of(cfg).derive_num_classes(cfg, (name,))
        trainer = UPDETRTrainer(cfg)
        trainer.resume_or_load(resume=False)
    except ValueError as error:
        return str(error)
    trainer.train()  # from here on nothing may fail
    return None


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("coco", 0, 3),
        ("panoptic", 10, 13),
        ("voc", 0, 3),
        pytest.param("coco", 0, 170, marks=pytest.mark.long),
        pytest.param("panoptic", 0, 160, marks=pytest.mark.long),
        pytest.param("voc", 0, 170, marks=pytest.mark.long),
    ],
)
def test_files_of_any_structure_are_trained_with_or_refused(kind, first, last, tmp_path, monkeypatch):
    counts: Counter = Counter()
    before = set(DatasetCatalog)
    for seed in range(first, last):
        root = tmp_path / str(seed)
        root.mkdir()
        monkeypatch.setenv(CACHE_VARIABLE, str(root / "cache"))
        try:
            refused = train_and_evaluate(kind, root, np.random.default_rng(seed))
        except Exception as error:
            raise AssertionError(f"{kind} file of seed {seed}: {type(error).__name__}: {error}") from error
        finally:
            forget_runs(before)
        if refused:
            assert "\n" not in refused and len(refused) > 40, f"{kind} file of seed {seed}: {refused!r}"
        counts["refused" if refused else "trained"] += 1
        shutil.rmtree(root)
    print(f"{kind}: {dict(counts)}")
    assert counts["trained"]

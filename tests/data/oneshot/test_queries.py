"""The data of one-shot detection: no unseen object leaks into training, queries are drawn as documented."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from voc_folder import write_voc_folder

from updetr_d2 import add_updetr_config
from updetr_d2.data.oneshot.queries import QueryPool, evaluation_images, evaluation_queries, training_images

NAMES = ["ant", "bee", "cat", "dog"]
ANT, BEE, CAT, DOG = range(4)


def image(number, *objects):
    """A dataset dict; objects are class ids or (class id, XYXY box[, iscrowd])."""
    annotations = []
    for each in objects:
        class_id, box, *crowd = each if isinstance(each, tuple) else (each, (number, 10, number + 20, 40))
        annotations.append(
            {
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": class_id,
                "iscrowd": crowd[0] if crowd else 0,
            }
        )
    size = {"height": 64, "width": 96}
    return {"file_name": f"/data/{number}.jpg", "image_id": number, **size, "annotations": annotations}


@pytest.fixture
def cfg():
    """A registered data set of four classes of which "dog" is unseen."""
    name = "animals_of_a_test"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(thing_classes=NAMES, evaluator_type="coco")
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.ONESHOT.UNSEEN_CLASSES = ("dog",)
    cfg.TEST.ONESHOT.NUM_QUERIES = 2
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def classes(dataset_dict):
    return [each["category_id"] for each in dataset_dict["annotations"]]


def test_training_images_lose_unseen_objects(cfg):
    images = [image(1, ANT, DOG), image(2, DOG), image(3, BEE, CAT), image(4)]
    kept = training_images(cfg, images)
    assert [(each["image_id"], classes(each)) for each in kept] == [(1, [ANT]), (3, [BEE, CAT])]
    assert classes(images[0]) == [ANT, DOG]  # the data set itself stays as it is


def test_images_with_unseen_objects_can_be_dropped(cfg):
    cfg.DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN = False
    kept = training_images(cfg, [image(1, ANT, DOG), image(2, BEE)])
    assert [each["image_id"] for each in kept] == [2]


def test_classes_that_are_neither_seen_nor_unseen_are_not_trained(cfg):
    cfg.DATASETS.ONESHOT.SEEN_CLASSES = ("ant",)
    cfg.DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN = False
    kept = training_images(cfg, [image(1, ANT, BEE), image(2, BEE), image(3, ANT, DOG)])
    assert [(each["image_id"], classes(each)) for each in kept] == [(1, [ANT])]


def test_no_image_with_seen_objects_is_an_error(cfg):
    crowd = image(2, (ANT, (0, 0, 30, 30), 1))
    with pytest.raises(ValueError, match="no image with an object of the seen classes"):
        training_images(cfg, [image(1, DOG), crowd])


def make_pool(*images, min_side=8, same_image=False):
    return QueryPool(list(images), min_side=min_side, same_image=same_image)


def test_pool_leaves_out_crowds_and_small_objects():
    pool = make_pool(
        image(1, (ANT, (0, 0, 7.9, 50)), (BEE, (0, 0, 50, 50), 1), (CAT, (0, 0, 8, 8))), image(2)
    )
    assert pool.classes == (CAT,)
    (query,) = pool.draw(np.random.default_rng(0), CAT, "/data/2.jpg", 1)
    assert query == ("/data/1.jpg", (0.0, 0.0, 8.0, 8.0))


def test_queries_come_from_other_images():
    pool = make_pool(image(1, ANT, BEE), image(2, ANT, ANT), image(3, ANT))
    rng = np.random.default_rng(0)
    for target in range(1, 5):
        files = {pool.draw(rng, ANT, f"/data/{target}.jpg", 1)[0].file_name for _ in range(50)}
        assert files == {f"/data/{i}.jpg" for i in range(1, 4) if i != target}
    assert not pool.has_query(BEE, "/data/1.jpg")
    assert pool.has_query(BEE, "/data/2.jpg")
    assert not pool.has_query(DOG, "/data/1.jpg")


def test_queries_may_come_from_the_image_itself_if_asked_for():
    pool = make_pool(image(1, ANT), image(2, ANT), same_image=True)
    rng = np.random.default_rng(0)
    files = {pool.draw(rng, ANT, "/data/1.jpg", 1)[0].file_name for _ in range(50)}
    assert files == {"/data/1.jpg", "/data/2.jpg"}


def test_shots_are_different_objects_while_there_are_enough():
    pool = make_pool(*(image(i, ANT) for i in range(1, 6)))
    drawn = pool.draw(np.random.default_rng(0), ANT, "/data/1.jpg", 4)
    assert sorted(each.file_name for each in drawn) == [f"/data/{i}.jpg" for i in range(2, 6)]
    drawn = pool.draw(np.random.default_rng(0), ANT, "/data/1.jpg", 6)
    assert len(drawn) == 6
    assert len(set(drawn)) == 4


@pytest.fixture
def images():
    return [
        image(1, ANT, DOG),
        image(2, ANT, ANT),
        image(3, DOG, (BEE, (0, 0, 30, 30), 1)),
        image(4, ANT, CAT),
    ]


def test_every_pair_of_image_and_present_class_is_queried_in_every_round(cfg, images):
    queries = evaluation_queries(cfg, cfg.DATASETS.TRAIN[0], images)
    pairs = [(each["image_id"], each["query_class"], each["query_round"]) for each in queries]
    # The crowd of bees is no object, and no other image shows a cat.
    expected = [(1, ANT), (1, DOG), (2, ANT), (3, DOG), (4, ANT)]
    assert pairs == [(*pair, i) for pair in expected for i in range(2)]
    for each in queries:
        assert "annotations" not in each
        (query,) = each["queries"]
        assert query.file_name != each["file_name"]
        number = int(query.file_name.split("/")[-1][:-4])
        assert each["query_class"] in classes(next(i for i in images if i["image_id"] == number))


def test_queries_depend_on_seed_image_and_class_alone(cfg, images):
    images += [image(i, ANT) for i in range(5, 30)]
    name = cfg.DATASETS.TRAIN[0]
    first = evaluation_queries(cfg, name, images)
    np.random.seed(3)
    assert evaluation_queries(cfg, name, images) == first
    cfg.TEST.ONESHOT.SEED = 1
    other = evaluation_queries(cfg, name, images)
    assert [each["queries"] for each in other] != [each["queries"] for each in first]
    ants = [each["queries"] for each in first if each["query_class"] == ANT]
    assert all(a != b for a, b in zip(ants[::2], ants[1::2]))  # another patch in each round


def test_rounds_have_as_many_shots_as_configured(cfg, images):
    cfg.DATASETS.ONESHOT.NUM_SHOTS = 3
    queries = evaluation_queries(cfg, cfg.DATASETS.TRAIN[0], images)
    assert {len(each["queries"]) for each in queries} == {3}


def test_test_set_without_queries_is_an_error(cfg):
    with pytest.raises(ValueError, match="has no image and class with a query patch"):
        evaluation_queries(cfg, cfg.DATASETS.TRAIN[0], [image(1, ANT), image(2, BEE)])


def test_no_query_asked_for_is_an_error(cfg, images):
    cfg.TEST.ONESHOT.NUM_QUERIES = 0
    with pytest.raises(ValueError, match=r"TEST\.ONESHOT\.NUM_QUERIES is 0"):
        evaluation_queries(cfg, cfg.DATASETS.TRAIN[0], images)


def test_difficult_objects_of_voc_are_ignored(tmp_path):
    objects = [("cat", (1, 1, 20, 20), 1), ("dog", (5, 5, 40, 40), 0)]
    write_voc_folder(tmp_path, {"test": {"000001": objects}}, size=(60, 50))
    name = "voc_of_a_test"
    MetadataCatalog.get(name).set(dirname=str(tmp_path), evaluator_type="pascal_voc")
    try:
        (marked,) = evaluation_images(name, [voc_image()])
    finally:
        MetadataCatalog.remove(name)
    assert [each["iscrowd"] for each in marked["annotations"]] == [1, 0]


def voc_image():
    """As Detectron2's loader of VOC gives it: without ``iscrowd`` and ``difficult``."""
    boxes = {CAT: (0, 0, 20, 20), DOG: (4, 4, 40, 40)}
    annotations = [
        {"category_id": class_id, "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS}
        for class_id, box in boxes.items()
    ]
    return {"file_name": "/data/000001.jpg", "image_id": "000001", "annotations": annotations}

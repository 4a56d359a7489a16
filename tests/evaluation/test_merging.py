"""Evaluation by several processes gives the results of one: no image is lost and none counts twice."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from helpers import tiny_cfg, true_panoptic_output
from processes import run_processes
from torch import nn

from updetr_d2.data.scenes.register import Split, register_scenes
from updetr_d2.engine.trainer import UPDETRTrainer

NUM_IMAGES = 5  # neither 2 nor 3 processes can share them out evenly


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """For the scenes, so that they are made once."""
    return tmp_path_factory.mktemp("scenes")


class Oracle(nn.Module):
    """Knows the true boxes and classes and spoils some, in every image in another way."""

    def __init__(self, dataset_name):
        super().__init__()
        self.images = {each["image_id"]: each for each in DatasetCatalog.get(dataset_name)}
        self.num_things = len(MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id)

    def forward(self, batch):
        return [self.answer(sample) for sample in batch]

    def answer(self, sample):
        known = self.images[sample["image_id"]]
        generator = torch.Generator().manual_seed(list(self.images).index(sample["image_id"]))
        if "pan_seg_file_name" in known:
            output = true_panoptic_output(known, self.num_things)
            spoiled = output["panoptic_seg"][1][int(torch.randint(3, (1,), generator=generator))]
            spoiled["category_id"] = (spoiled["category_id"] + 1) % self.num_things
            output["instances"].scores.uniform_(generator=generator)
            return output
        objects = known["annotations"]
        if "query_class" in sample:
            objects = [each for each in objects if each["category_id"] == sample["query_class"]]
        boxes = torch.tensor([each["bbox"] for each in objects]).float()  # XYWH
        boxes[:, 2:] *= 0.5 + torch.rand(len(boxes), 2, generator=generator)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances(
            (known["height"], known["width"]),
            pred_boxes=Boxes(boxes),
            scores=torch.rand(len(boxes), generator=generator),
            pred_classes=torch.tensor([each["category_id"] for each in objects]),
        )
        return {"instances": instances}


def evaluate(folder, meta_architecture, output_dir):
    """Five scenes under the names odd_val and odd_val_panoptic, each process its share."""
    splits = {"val": Split(first_index=600_000, count=NUM_IMAGES, labeled=True)}
    register_scenes(folder, prefix="odd", splits=splits)
    name = "odd_val_panoptic" if meta_architecture == "PanopticDETR" else "odd_val"
    cfg = tiny_cfg(meta_architecture, "DATASETS.TRAIN", (name,), "INPUT.MIN_SIZE_TEST", 64)
    cfg.merge_from_list(["OUTPUT_DIR", str(output_dir), "DATALOADER.NUM_WORKERS", 0, "TEST.VIS_IMAGES", 0])
    cfg.merge_from_list(["MODEL.MASK_ON", meta_architecture == "PanopticDETR"])
    torch.manual_seed(0)
    model = UPDETRTrainer.build_model(cfg) if meta_architecture == "UPDETR" else Oracle(name)
    loader = UPDETRTrainer.build_test_loader(cfg, name)
    num_seen = sum(len(batch) for batch in loader)
    results = inference_on_dataset(model, loader, UPDETRTrainer.build_evaluator(cfg, name))
    return sum(comm.all_gather(num_seen)), results


@pytest.mark.parametrize(
    ("meta_architecture", "measure"),
    [
        ("UPDETR", ("query_patch", "mIoU")),
        ("DETR", ("bbox", "AP")),
        ("OneShotDETR", ("oneshot", "seen_AP")),
        ("PanopticDETR", ("panoptic_seg", "PQ")),
    ],
)
def test_odd_numbers_of_images_merge_exactly(folder, meta_architecture, measure, tmp_path):
    ((num_seen, expected),) = run_processes(1, evaluate, folder, meta_architecture, tmp_path / "1")
    task, name = measure
    assert 1 < expected[task][name] < 99  # something would change
    for world_size in (2, 3):
        results = run_processes(world_size, evaluate, folder, meta_architecture, tmp_path / str(world_size))
        assert {each for each, _ in results} == {num_seen}
        merged = results[0][1]
        assert merged.keys() == expected.keys()
        for task in expected:
            assert merged[task] == pytest.approx(expected[task], rel=1e-6, nan_ok=True)
        assert not any(results_of_others for _, results_of_others in results[1:])

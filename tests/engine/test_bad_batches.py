"""A saved batch is the batch: same fields, same losses with the random numbers of its step."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from helpers import random_sample, tiny_model

from updetr_d2.checkpoint.safe_loading import load_state_file
from updetr_d2.engine.bad_batches import load_bad_batch, replay, save_bad_batch, save_weights
from updetr_d2.engine.step_seed import seed_step


def save(folder, batch):
    return save_bad_batch(
        str(folder), batch, iteration=12, rank=1, seed=5, scalars={"loss_ce": float("nan"), "grad_norm": 2.0}
    )


def test_replaying_gives_the_losses_of_the_step(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("UPDETR", "MODEL.DETR.DROPOUT", 0.3)
    batch = [{**random_sample(num_patches=5), "file_name": f"{i}.jpg"} for i in range(2)]
    path = save(tmp_path, batch)
    assert path.endswith("bad_batches/iteration_0000012_rank_1.pth")
    seed_step(5, 1, 12)
    expected = model(batch)
    saved = load_bad_batch(path)
    assert [sample["file_name"] for sample in saved["batch"]] == ["0.jpg", "1.jpg"]
    assert saved["scalars"]["grad_norm"] == 2
    losses = replay(model.eval(), saved)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    assert not torch.equal(model(batch)["loss_ce"], expected["loss_ce"])  # other dropout


def test_the_saved_weights_load_into_another_model(tmp_path):
    model = tiny_model("UPDETR")
    path = save_weights(str(tmp_path), model, iteration=12)
    saved = load_state_file(path)
    assert saved["meta_architecture"] == "UPDETR"
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in model.state_dict().items())


def test_every_structure_of_detectron2_comes_back(tmp_path):
    polygon = [0.0, 0.0, 4.0, 0.0, 4.0, 4.0]
    instances = Instances(
        (6, 8),
        gt_boxes=Boxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]])),
        gt_classes=torch.tensor([3]),
        gt_masks=BitMasks(torch.eye(8)[None, :6] > 0),
        gt_polygons=PolygonMasks([[polygon]]),
    )
    image = torch.randint(256, (3, 6, 8), dtype=torch.uint8)
    sample = {"image": image, "height": 6, "instances": instances, "image_id": None}
    loaded = load_bad_batch(save(tmp_path, [sample]))["batch"][0]
    assert torch.equal(loaded["image"], image) and loaded["image"].dtype == torch.uint8
    assert loaded["height"] == 6 and loaded["image_id"] is None
    theirs = loaded["instances"]
    assert theirs.image_size == (6, 8)
    assert torch.equal(theirs.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(theirs.gt_classes, instances.gt_classes)
    assert torch.equal(theirs.gt_masks.tensor, instances.gt_masks.tensor)
    assert theirs.gt_polygons.polygons[0][0].tolist() == polygon


@pytest.mark.parametrize("value", [torch.tensor(3.5).numpy(), torch.tensor(3.5).numpy()[()]])
def test_numbers_of_numpy_come_back_as_numbers(tmp_path, value):
    assert float(load_bad_batch(save(tmp_path, [{"scale": value}]))["batch"][0]["scale"]) == 3.5

"""What comes out of a packed chunk is what went in, in one piece of memory."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch.utils.data import Dataset

from updetr_d2.data.loading.handover import pack
from updetr_d2.data.loading.samples import StreamSample
from updetr_d2.data.loading.workers import SampleLoader


def sample(number):
    instances = Instances((6, 7), gt_boxes=Boxes(torch.rand(3, 4)), gt_classes=torch.arange(3))
    instances.gt_masks = BitMasks(torch.rand(3, 6, 7) > 0.5)
    return {
        "file_name": f"{number}.jpg",
        "image": torch.randint(256, (3, 6, 7), dtype=torch.uint8),
        "transposed": torch.rand(4, 5).t(),
        "nothing": torch.zeros(0, 3),
        "number": torch.tensor(number),
        "instances": instances,
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)
    theirs, ours = found["instances"], expected["instances"]
    assert theirs.image_size == ours.image_size
    for name in ("gt_boxes", "gt_masks"):
        assert torch.equal(theirs.get(name).tensor, ours.get(name).tensor)
    assert torch.equal(theirs.gt_classes, ours.gt_classes)


def test_samples_are_the_same_and_their_tensors_share_one_buffer():
    samples = [sample(i) for i in range(4)]
    packed = pack(samples)
    unpacked = packed.unpack()
    for found, expected in zip(unpacked, samples, strict=True):
        assert_same(found, expected)
    storages = {
        tensor.untyped_storage().data_ptr()
        for each in unpacked
        for tensor in (each["image"], each["instances"].gt_masks.tensor, each["instances"].gt_boxes.tensor)
    }
    assert storages == {packed.buffer.untyped_storage().data_ptr()}
    assert unpacked[1]["image"].data_ptr() % 64 == packed.buffer.data_ptr() % 64


def test_a_tensor_that_occurs_twice_stays_one():
    tensor = torch.rand(3)
    first, second = pack([tensor, {"again": tensor}]).unpack()
    assert first.data_ptr() == second["again"].data_ptr()


def test_a_tensor_with_gradient_comes_through():
    assert pack(torch.ones(2, requires_grad=True)).unpack().requires_grad


class Numbered(Dataset):
    def __getitem__(self, index):
        torch.manual_seed(index)
        return StreamSample(index, sample(index), [])


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_workers_give_all_samples_in_order_whatever_the_chunks(chunk_size):
    loader = SampleLoader(
        Numbered(), range(10), num_workers=2, prefetch=4, pin_memory=False, chunk_size=chunk_size
    )
    found = list(loader)
    assert [each.position for each in found] == list(range(10))
    for each in found:
        torch.manual_seed(each.position)
        assert_same(each.sample, sample(each.position))

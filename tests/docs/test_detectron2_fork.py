"""The subclass of DETECTRON2_FORK.md trains and finds boxes as it stands there."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from docs.pages import python_files
from helpers import random_sample, tiny_model

NAME = "LargeObjectsDETR"


@pytest.fixture(name="registered")
def _registered():
    exec(python_files("docs/DETECTRON2_FORK.md")["my_detr.py"], {"__name__": "my_detr"})
    yield
    META_ARCH_REGISTRY._obj_map.pop(NAME)


def test_it_trains_and_leaves_small_boxes_out(registered):
    model = tiny_model(NAME)
    assert model.task == "detection"
    assert torch.isfinite(sum(model([random_sample()]).values()))
    with torch.no_grad():
        model.bbox_embed.layers[-1].bias[2:] = torch.tensor([-20.0, 20.0])  # no width
        (result,) = model.eval()([random_sample()])
        assert len(result["instances"]) == 0
        model.bbox_embed.layers[-1].bias[2:] = 20.0
        (result,) = model([random_sample()])
    assert len(result["instances"]) == model.num_queries

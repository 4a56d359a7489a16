"""Fixtures that several test folders share."""

import itertools

import hypothesis
import numpy as np
import pytest
import torch
import torchvision
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from torch import nn
from voc_folder import write_voc_folder

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Tiny models gain nothing from threads, and tests that run side by side lose much to them.
torch.set_num_threads(1)


def _mlp(*sizes: int) -> nn.Module:
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
    return module


def _mask_head(width: int, heads: int) -> nn.Module:
    head = nn.Module()
    sizes = [width + heads, width + heads, width // 2, width // 4, width // 8, width // 16]
    for i, (a, b) in enumerate(itertools.pairwise(sizes), start=1):
        head.add_module(f"lay{i}", nn.Conv2d(a, b, 3))
        head.add_module(f"gn{i}", nn.GroupNorm(1, b))
    for i in range(1, 4):
        head.add_module(f"adapter{i}", nn.Conv2d(8, sizes[i], 1))
    head.out_lay = nn.Conv2d(sizes[-1], 1, 3)
    return head


def official_state_dict(
    *,
    num_classes: int = 91,
    depth: int = 18,
    pre_norm: bool = False,
    pretraining: bool = False,
    panoptic: bool = False,
    width: int = 32,
) -> dict[str, torch.Tensor]:
    """A random state dict in the official layout of DETR or UP-DETR, from PyTorch's own modules."""
    model = nn.Module()
    model.transformer = nn.Transformer(width, 2, 2, 2, dim_feedforward=8, norm_first=pre_norm)
    if not pre_norm:
        model.transformer.encoder.norm = None
    model.class_embed = nn.Linear(width, num_classes + 1)
    model.bbox_embed = _mlp(width, width, width, 4)
    model.query_embed = nn.Embedding(10, width)
    model.input_proj = nn.Conv2d(512, width, 1)
    model.backbone = nn.ModuleList([nn.Module()])
    body = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    body.fc = None
    model.backbone[0].body = body
    if pretraining:
        model.patch2query = nn.Linear(512, width)
        model.feature_align = _mlp(width, width, 512)
    if panoptic:
        whole = nn.Module()
        whole.detr = model
        whole.bbox_attention = nn.Module()
        whole.bbox_attention.q_linear = nn.Linear(width, width)
        whole.bbox_attention.k_linear = nn.Linear(width, width)
        whole.mask_head = _mask_head(width, 2)
        model = whole
    # The official code's frozen BatchNorm has no counters.
    return {
        name: torch.randn(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(name="official_state_dict")
def _official_state_dict():
    torch.manual_seed(0)
    return official_state_dict


@pytest.fixture(name="voc")
def _voc(tmp_path):
    """VOC07 and 12 in small, registered in the place of the real ones: difficult objects, an image without any."""
    rng = np.random.default_rng(0)

    def objects(i):
        x, y = (int(v) for v in rng.integers(1, 50, size=2))
        return [
            (("dog", "person")[i % 2], (x, y, x + 40, y + 30), 0),
            ("car", (2, 2, 20, 20), int(i % 3 == 0)),
        ]

    folders = {
        "VOC2007": {
            "trainval": {f"{i:06d}": objects(i) for i in range(4)} | {"000009": []},
            "test": {f"{i:06d}": objects(i) for i in range(10, 14)},
        },
        "VOC2012": {"trainval": {f"2008_{i:06d}": objects(i) for i in range(3)}},
    }
    registered = {}
    for folder, splits in folders.items():
        write_voc_folder(tmp_path / folder, splits, size=(120, 90))
        year = int(folder[3:])
        for split in splits:
            name = f"voc_{year}_{split}"
            registered[name] = (DatasetCatalog.pop(name), MetadataCatalog.pop(name))
            register_pascal_voc(name, str(tmp_path / folder), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    yield
    for name, (function, metadata) in registered.items():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.register(name, function)
        MetadataCatalog[name] = metadata

"""Every model, evaluator and reference on a pretended GPU: nothing mixes devices, and who waits is documented."""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks
from helpers import (
    DEFORMABLE,
    DINO,
    PANOPTIC_RESNET18,
    RESNET18,
    TWO_STAGE,
    random_sample,
    save_tiny_model,
    tiny_cfg,
    tiny_model,
)
from pretend_cuda import CudaTensor, MixedDevices, SimulatedTF32, pretend_cuda, to_cuda
from torch import nn

from benchmarks.speed.inference import plain_inference
from benchmarks.speed.reference_model import PlainDETR
from updetr_d2.data.oneshot.splits import ClassSplit
from updetr_d2.evaluation import OneShotEvaluator
from updetr_d2.evaluation.query_patch import QueryPatchEvaluator
from updetr_d2.inference.predictor import Predictor
from updetr_d2.modeling.fast.optimize import optimize_frozen
from updetr_d2.modeling.fast.timm_folding import FoldedTimmNet
from updetr_d2.modeling.meta_arch.updetr import UPDETR
from updetr_d2.modeling.position_encoding import SinePositionEncoding
from updetr_d2.modeling.transformers import Transformer

PERFORMANCE = Path(__file__).resolve().parent.parent / "docs" / "PERFORMANCE.md"

# The row of the table in docs/PERFORMANCE.md -> architecture and options.
MODELS = {
    "UPDETR": ("UPDETR", *RESNET18),
    "DETR": ("DETR", *RESNET18),
    "OneShotDETR": ("OneShotDETR", *RESNET18, "MODEL.DETR.NUM_CLASSES", 1),
    "PanopticDETR": ("PanopticDETR", *PANOPTIC_RESNET18),
    "DETR on DeformableTransformer": ("DETR", *DEFORMABLE),
    "DETR on DeformableTransformer, two stages": ("DETR", *TWO_STAGE),
    "DETR on DINOTransformer": ("DETR", *DINO),
}


def build(name):
    torch.manual_seed(0)
    return to_cuda(optimize_frozen(tiny_model(*MODELS[name])))


def make_samples(name, *, labels):
    """Two images of different size."""
    torch.manual_seed(1)
    samples = []
    for size in ((64, 96), (96, 64)):
        sample = random_sample(*size, num_patches=5 if name == "UPDETR" else None)
        if name == "OneShotDETR":
            sample["patches"] = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
            sample["instances"].gt_classes.zero_()
        if name == "PanopticDETR":
            sample["instances"].gt_masks = BitMasks(torch.rand(3, *size) > 0.5)
        if not labels:
            del sample["instances"]
        samples.append(sample)
    return samples


def run(name, *, training, bf16=False):
    """One forward pass; returns the output and what the host waited for and copied."""
    model = build(name).train(training)
    with pretend_cuda() as mode, torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        if training:
            return model(make_samples(name, labels=True)), mode.events
        with torch.no_grad():
            return model(make_samples(name, labels=False)), mode.events


def told(events, kinds):
    """Events of some kinds as docs/PERFORMANCE.md tells them."""
    found = Counter({function: count for (kind, function), count in sorted(events.items()) if kind in kinds})
    return ", ".join(f"{count} {function}" for function, count in sorted(found.items())) or "nothing"


def row(name, training):
    """The row of the table for a model, in training or at inference."""
    _, events = run(name, training=training)
    return [
        told(events, {"wait"}),
        told(events, {"copy to the host"}),
        told(events, {"blocking copy to the device"}),
        told(events, {"copy to the device"}),
    ]


def documented(name, training):
    """The row in docs/PERFORMANCE.md."""
    kind = "training" if training else "inference"
    line = re.search(rf"^\| {re.escape(name)} \| {kind} \|(.*)\|$", PERFORMANCE.read_text(), re.M)
    assert line, f"docs/PERFORMANCE.md has no row '{name} | {kind}'"
    return [cell.strip().replace("`", "") for cell in line[1].split("|")]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODELS)
def test_the_documentation_tells_exactly_what_the_host_waits_for_and_copies(name, training):
    assert row(name, training) == documented(name, training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_mixes_no_devices_and_waits_for_nothing_more(name, training):
    output, events = run(name, training=training, bf16=True)
    _, expected = run(name, training=training)
    if name != "PanopticDETR" or training:  # how often it drops segments depends on the numbers
        assert events == expected
    if training:
        assert all(isinstance(loss, CudaTensor) and loss.isfinite().inner for loss in output.values())
    else:
        assert all(isinstance(each["instances"].scores, CudaTensor) for each in output)


def test_numbers_on_the_pretended_gpu_are_those_of_the_cpu():
    expected = optimize_frozen(tiny_model(*MODELS["DETR"]))
    model = to_cuda(copy.deepcopy(expected))
    samples = make_samples("DETR", labels=True)
    with pretend_cuda():
        losses = model(samples)
    for name, value in expected(samples).items():
        torch.testing.assert_close(losses[name].inner, value.detach(), rtol=1e-4, atol=1e-5)


class Forgetful(UPDETR):
    """Planted faults."""

    fault = ""

    def make_queries(self, batched_inputs):
        queries = super().make_queries(batched_inputs)
        if self.fault == "mixed":
            queries.patches = queries.patches + queries.patches.cpu()
        if self.fault == "item":
            queries.patches = queries.patches * queries.patches.abs().max().clamp(max=1).item()
        return queries


@pytest.mark.parametrize("fault", ["mixed", "item"])
def test_planted_faults_are_found(fault):
    model = build("UPDETR")
    model.__class__ = Forgetful
    model.fault = fault
    samples = make_samples("UPDETR", labels=True)
    with pretend_cuda() as mode:
        if fault == "mixed":
            with pytest.raises(MixedDevices, match=r"test_pretend_cuda\.py:\d+"):
                model(samples)
        else:
            model(samples)
            assert sum(count for (kind, _), count in mode.events.items() if kind == "wait") == 1


def test_pretended_tensors_refuse_what_gpus_refuse():
    with pretend_cuda() as mode:
        tensor = torch.ones(3, device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            tensor.numpy()
        with pytest.raises(MixedDevices):
            tensor + torch.ones(3)
        tensor[torch.tensor([0, 1])]
        tensor.nonzero()
        tensor[tensor > 0]
        torch.tensor([1.0], device="cuda")
        tensor.to("cpu", non_blocking=True)
        torch.zeros(2).to("cuda")
    assert Counter(kind for kind, _ in mode.events.elements()) == {
        "wait": 2,
        "blocking copy to the device": 3,
        "copy to the host": 1,
    }
    assert mode.events["wait", "elsewhere"] == 2


@pytest.mark.parametrize("name", ["UPDETR", "DETR"])
def test_the_benchmarks_reference_is_all_on_the_device(name):
    """`benchmark.py step --compare` and `inference --compare` crashed on GPUs."""
    torch.manual_seed(0)
    model = optimize_frozen(tiny_model(*MODELS[name]))
    samples = make_samples(name, labels=True)
    with pretend_cuda():
        to_cuda(model)
        reference = MovesAsModules(model, tiny_cfg(*MODELS[name]))
        losses = reference(samples)
        plain_inference(reference.eval(), samples)
    assert all(isinstance(loss, CudaTensor) for loss in losses.values())


class MovesAsModules(PlainDETR):
    """The reference, whose new modules move to the pretended GPU where they are told to."""

    def __init__(self, model, cfg):
        original = nn.Module.to
        nn.Module.to = lambda module, device=None, *a, **k: to_cuda(module)
        try:
            super().__init__(model, cfg)
        finally:
            nn.Module.to = original


@pytest.mark.parametrize("name", ["UPDETR", "DETR", "OneShotDETR", "PanopticDETR"])
def test_the_predictor_and_the_demo_bring_everything_to_the_host(name, tmp_path):
    """``find`` is what the demo page and ``updetr demo`` call: pictures and tables of every task."""
    save_tiny_model(tmp_path, *MODELS[name], "INPUT.MIN_SIZE_TEST", 64)
    predictor = Predictor.from_config(tmp_path / "config.yaml", weights=tmp_path / "model.pth")
    to_cuda(predictor.model)
    image = np.full((64, 96, 3), 90, np.uint8)
    patches = [image[:32, :32]] if name in ("UPDETR", "OneShotDETR") else None
    with pretend_cuda():
        prediction = predictor(image, patches)
        assert prediction["instances"].scores.numpy().ndim == 1
        found = predictor.find(image, threshold=0.0, patches=None if patches is None else np.stack(patches))
    assert found


def outputs_on_the_gpu(name):
    samples = make_samples(name, labels=True)
    for number, sample in enumerate(samples):
        sample |= {"image_id": number, "file_name": f"{number}.jpg", "query_class": 0, "query_round": 0}
    model = build(name).eval()
    with pretend_cuda(), torch.no_grad():
        return samples, model(samples)


def coco_evaluator(folder):
    (folder / "things.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    name = f"pretended_{folder.name}"
    MetadataCatalog.get(name).set(json_file=str(folder / "things.json"), thing_classes=["a"])
    return COCOEvaluator(name, tasks=("bbox", "segm"), output_dir=str(folder))


@pytest.mark.parametrize(
    ("name", "build_evaluator"),
    [
        ("UPDETR", lambda folder: QueryPatchEvaluator(output_folder=str(folder), num_pictures=2)),
        ("OneShotDETR", lambda _: OneShotEvaluator("x", split=ClassSplit((0,), ()), num_shots=1, seed=0)),
        ("DETR", coco_evaluator),
        ("PanopticDETR", coco_evaluator),
    ],
)
def test_evaluators_take_predictions_from_the_gpu(name, build_evaluator, tmp_path):
    samples, outputs = outputs_on_the_gpu(name)
    evaluator = build_evaluator(tmp_path)
    with pretend_cuda():
        evaluator.reset()
        evaluator.process(samples, outputs)


def test_counted_positions_are_integers():
    """GPUs have no deterministic cumulative sum of floats."""
    types = []

    class Recording(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types_, args=(), kwargs=None):
            if function is torch.ops.aten.cumsum.default:
                types.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    with Recording():
        SinePositionEncoding(8)(torch.zeros(1, 4, 5, dtype=torch.bool))
    assert types and not any(dtype.is_floating_point for dtype in types)


def test_timm_networks_are_folded_where_convolutions_round_to_tf32(caplog, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet18", features_only=True, pretrained=False).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.2, 2)
            nn.init.normal_(module.running_mean)
    net = timm.layers.freeze_batch_norm_2d(net).requires_grad_(False)
    images = torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with SimulatedTF32():
        folded = FoldedTimmNet(net)
        folded(images)
        assert folded._folded is not net
        assert "cannot be folded" not in caplog.text
        # The simulation rounds by more than the check allows: without care, the network would not be folded.
        exact = net(images)[-1]
    with SimulatedTF32(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert (net(images)[-1] - exact).abs().max() > 1e-3 * exact.std()


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_residual_stream_keeps_its_digits_under_bfloat16(pre_norm):
    torch.manual_seed(0)
    transformer = Transformer(hidden_dim=32, num_heads=4, dropout=0.0, pre_norm=pre_norm).eval()
    seen = []
    for layer in transformer.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        transformer(
            torch.randn(1, 32, 4, 4).bfloat16(),
            position=torch.randn(1, 32, 4, 4),
            query_position=torch.randn(1, 5, 32),
        )
    assert set(seen) == {torch.float32}

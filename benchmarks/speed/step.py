"""``benchmark.py step``: a training step, as a whole and by its parts."""

import contextlib
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.speed import synthetic
from benchmarks.speed.criterion import assert_same_losses
from benchmarks.speed.parts import PartClock
from benchmarks.speed.reference_model import PlainDETR
from benchmarks.speed.timing import Clock, Measurement, measure_in_turn, peak_memory
from updetr_d2.engine.optimizer import build_optimizer, full_model_clip_norm
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.trainer import amp_dtype, checks_late


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=2, help="images of a step (default: 2)")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"), help="default: 320 480"
    )
    parser.add_argument(
        "--targets", type=int, default=10, help="objects of an image, where patches are not (default: 10)"
    )


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    device = torch.device(cfg.MODEL.DEVICE)
    samples = synthetic.random_samples(
        cfg, batch_size=args.batch_size, size=tuple(args.image_size), num_targets=args.targets
    )
    model = synthetic.build_random_model(cfg)
    steps: dict[str, OurStep] = {}
    if args.compare:
        reference = PlainDETR(model, cfg)
        check_same_losses(model, reference, samples)
        steps["reference"] = ReferenceStep(cfg, reference, samples, args.clock)
    steps = {"ours": OurStep(cfg, model, samples, args.clock), **steps}
    whole = Measurement(f"step, batch {args.batch_size}", [], images=args.batch_size)
    times = measure_in_turn(steps, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
    peaks = {name: peak_memory(step, device) for name, step in steps.items()}
    whole.seconds, whole.reference_seconds = times["ours"], times.get("reference", [])
    whole.peak_mib, whole.reference_peak_mib = peaks["ours"], peaks.get("reference")
    return [whole, *_measure_parts(steps, args.repeats)]


def _measure_parts(steps: dict[str, "OurStep"], repeats: int) -> list[Measurement]:
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            for part, value in step.parts().items():
                seconds[name][part].append(value)
    reference: Mapping[str, list[float]] = seconds.get("reference", {})
    return [
        Measurement(f"step / {part}", values, reference.get(part, []))
        for part, values in seconds["ours"].items()
    ]


class OurStep:
    """Calling it is one training step on the same batch, by the loop of ``tools/train_net.py``."""

    def __init__(self, cfg: CfgNode, model: nn.Module, samples: list[dict], clock: Clock) -> None:
        self.clock = clock
        self.model = model.train()
        self.loop = self.build_loop(cfg, _SameBatch(samples))
        self.loop.iter = 0
        self.marks: dict[str, float] = {}

    def build_loop(self, cfg: CfgNode, batches: "_SameBatch") -> "_MarkedLoop | _PlainLoop":
        return _MarkedLoop(
            self.model,
            batches,
            build_optimizer(cfg, self.model),
            amp_dtype=amp_dtype(cfg),
            max_grad_norm=full_model_clip_norm(cfg),
            late_check=checks_late(cfg),
        )

    def __call__(self) -> None:
        with EventStorage(0):
            self.loop.run_step()

    def parts(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        clock = PartClock(self.model, self.clock)
        mark_forward = self.model.register_forward_hook(lambda *_: self._mark("forward"))
        self.loop.mark_backward = lambda: self._mark("backward")
        try:
            start = self.clock()
            self()
            end = self.clock()
        finally:
            mark_forward.remove()
            self.loop.mark_backward = lambda: None
            clock.remove()
        parts = clock.seconds
        parts["losses"] = parts.pop("criterion") - parts["matcher"]
        parts["other forward"] = self.marks["forward"] - start - sum(parts.values())
        parts["backward"] = self.marks["backward"] - self.marks["forward"]
        parts["clipping and optimiser"] = end - self.marks["backward"]
        return parts

    def _mark(self, name: str) -> None:
        self.marks[name] = self.clock()


class ReferenceStep(OurStep):
    """The same with the reference's model, plain autocast and PyTorch's default AdamW, one sum of losses."""

    def build_loop(self, cfg: CfgNode, batches: "_SameBatch") -> "_PlainLoop":
        return _PlainLoop(cfg, self.model, batches)


class _MarkedLoop(TrainLoop):
    # Called after the backward pass; replaced where it is timed.
    mark_backward: Callable[[], None] = staticmethod(lambda: None)

    def after_backward(self) -> None:
        super().after_backward()
        self.mark_backward()


class _PlainLoop:
    iter: int

    def __init__(self, cfg: CfgNode, model: nn.Module, batches: "_SameBatch") -> None:
        self.model = model
        self.batches = iter(batches)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        self.max_norm = full_model_clip_norm(cfg)
        self.amp_dtype = amp_dtype(cfg)
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        self.mark_backward: Callable[[], None] = lambda: None

    def run_step(self) -> None:
        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(next(self.batches))
        total = sum(losses.values())
        for value in losses.values():  # the official code logs every loss
            value.item()
        self.optimizer.zero_grad()
        total.backward()
        self.mark_backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()


class _SameBatch:
    """The same batch for ever, as a loader gives it."""

    seed = 0

    def __init__(self, samples: list[dict]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[list[dict]]:
        while True:
            yield self.samples


@contextlib.contextmanager
def without_randomness(model: nn.Module) -> Iterator[None]:
    """No dropout, no masked queries."""
    saved = []
    for module in model.modules():
        for name, off in (("p", 0.0), ("dropout", 0.0), ("mask_ratio", -1.0), ("query_shuffle", False)):
            value = module.__dict__.get(name)
            if isinstance(value, (float, bool)):
                saved.append((module, name, value))
                setattr(module, name, off)
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def check_same_losses(model: nn.Module, reference: nn.Module, samples: list[dict]) -> None:
    """Make sure that the reference computes what our model does.

    Raises:
        AssertionError: naming the losses that differ.
    """
    with without_randomness(model), without_randomness(reference), torch.no_grad():
        ours, theirs = model.train()(samples), reference.train()(samples)
    assert_same_losses(ours, theirs)

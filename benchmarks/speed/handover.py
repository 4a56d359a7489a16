"""``benchmark.py hand-over``: what the training process does to get samples from its loader workers.

The time is that of the processor in the training process alone, whatever the workers do. The reference is
PyTorch's ``DataLoader``, which hands over one sample at a time and each tensor by itself.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed import synthetic
from benchmarks.speed.timing import Measurement
from updetr_d2.data.loading.samples import StreamSample
from updetr_d2.data.loading.workers import SampleLoader


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(400, 533), metavar=("H", "W"), help="default: 400 533"
    )
    parser.add_argument("--samples", type=int, default=256, help="of a repeat (default: 256)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers (default: 2)")
    parser.add_argument("--chunk-size", type=int, default=8, help="samples handed over together (default: 8)")
    parser.add_argument("--targets", type=int, default=10, help="objects of an image without patches")


class SameSample(Dataset):
    """Samples that cost the workers next to nothing."""

    def __init__(self, sample: dict) -> None:
        self.sample = sample

    def __getitem__(self, index: int) -> StreamSample:
        return StreamSample(index, self.sample, [])


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    dataset = SameSample(
        synthetic.random_samples(cfg, batch_size=1, size=tuple(args.image_size), num_targets=args.targets)[0]
    )
    pin_memory = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    indices = range(args.samples)
    loaders: dict[str, Iterable] = {
        "ours": SampleLoader(
            dataset,
            indices,
            num_workers=args.workers,
            prefetch=64,
            pin_memory=pin_memory,
            chunk_size=args.chunk_size,
        )
    }
    if args.compare:
        loaders["reference"] = _single_samples(dataset, indices, args.workers, pin_memory)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(args.warmup + args.repeats):
        for name, loader in loaders.items():
            elapsed = seconds_of_this_process(iter(loader))
            if turn >= args.warmup:
                seconds[name].append(elapsed)
    return [
        Measurement(
            f"hand-over of {args.samples} samples in chunks of {args.chunk_size}",
            seconds["ours"],
            seconds.get("reference", []),
            images=args.samples,
        )
    ]


def _single_samples(dataset: Dataset, indices: range, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        prefetch_factor=32,
        pin_memory=pin_memory,
        collate_fn=lambda sample: sample,
    )


def seconds_of_this_process(samples: Iterator) -> float:
    """The processor's time for all samples after the first, for which the workers start."""
    next(samples)
    start = time.process_time()
    for sample in samples:
        assert sample.sample is not None
    return time.process_time() - start

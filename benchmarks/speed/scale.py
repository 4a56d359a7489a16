"""``benchmark.py scale``: how time and memory of a step grow with batch, patches, queries, image size, processes.

One of them changes at a time; the others are as in the first row. With several processes (gloo on a CPU, NCCL on
GPUs) steps that synchronise the gradients take turns with steps that do not.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from benchmarks.speed import synthetic
from benchmarks.speed.step import OurStep
from benchmarks.speed.timing import Clock, Measurement, measure_in_turn, peak_memory
from updetr_d2.engine.trainer import distribute
from updetr_d2.tasks import task_of
from updetr_d2.tasks.pretraining import PretrainingTask


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--patches", type=int, nargs="*", default=[1, 5, 20], help="default: 1 5 20")
    parser.add_argument("--queries", type=int, nargs="*", default=[300], help="default: 300")
    parser.add_argument(
        "--image-sides",
        type=int,
        nargs="*",
        default=[320, 640],
        help="of square images, px; default: 320 640",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="0 leaves them out; without GPUs they share the CPU (default: 2)",
    )


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    first = {"batch": args.batch_sizes[0], "side": args.image_sides[0]}
    if isinstance(task_of(cfg), PretrainingTask):
        first["patches"] = cfg.MODEL.UPDETR.NUM_PATCHES
    first["queries"] = cfg.MODEL.DETR.NUM_QUERIES
    changes = [{"batch": value} for value in args.batch_sizes[1:]]
    changes += [{"side": value} for value in args.image_sides[1:]]
    changes += [{"queries": value} for value in args.queries]
    if "patches" in first:
        changes += [{"patches": value} for value in args.patches]
    rows = [_measure(args, cfg, **first)] + [_measure(args, cfg, **(first | change)) for change in changes]
    if args.processes > 1:
        rows.append(_measure_processes(args, cfg, first))
    return rows


def _measure(args: Namespace, cfg: CfgNode, **sizes: int) -> Measurement:
    cfg = _with_sizes(cfg, **sizes)
    step = _build_step(cfg, args.clock, **sizes)
    times = measure_in_turn({"step": step}, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
    peak = peak_memory(step, torch.device(cfg.MODEL.DEVICE))
    return Measurement(
        "step, " + ", ".join(f"{name} {value}" for name, value in sizes.items()),
        times["step"],
        images=sizes["batch"],
        peak_mib=peak,
        notes={} if peak is None else {"MiB an image": peak / sizes["batch"]},
    )


def _with_sizes(cfg: CfgNode, *, queries: int, patches: int | None = None, **_: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.NUM_QUERIES = queries
    if patches is not None:
        cfg.MODEL.UPDETR.NUM_PATCHES = patches
    cfg.freeze()
    return cfg


def _build_step(
    cfg: CfgNode, clock: Clock, wrap: Callable = lambda model: model, /, *, batch: int, side: int, **_: int
) -> OurStep:
    samples = synthetic.random_samples(cfg, batch_size=batch, size=(side, side), num_targets=10)
    return OurStep(cfg, wrap(synthetic.build_random_model(cfg).train()), samples, clock)


def _measure_processes(args: Namespace, cfg: CfgNode, sizes: dict[str, int]) -> Measurement:
    """A step of several processes that synchronise their gradients, beside one in which they do not."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _time_process, (args.processes, folder, args, cfg, sizes), nprocs=args.processes
        )
        seconds = torch.load(Path(folder) / "seconds.pth")
    synchronised, alone = (Measurement(name, values) for name, values in seconds.items())
    return Measurement(
        f"step, {args.processes} processes, batch {sizes['batch']} each",
        synchronised.seconds,
        images=args.processes * sizes["batch"],
        notes={
            "without synchronisation ms": 1000 * alone.median,
            "overhead %": 100 * (synchronised.median / alone.median - 1),
        },
    )


def _time_process(
    rank: int, world_size: int, folder: str, args: Namespace, cfg: CfgNode, sizes: dict[str, int]
) -> None:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.set_num_threads(args.threads or 1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    comm.create_local_process_group(world_size)
    try:
        step = _build_step(cfg, args.clock, distribute, **sizes)
        model = step.model
        assert isinstance(model, DistributedDataParallel)

        def alone() -> None:
            with model.no_sync():
                step()

        functions: dict[str, Callable[[], object]] = {"synchronised": step, "alone": alone}
        seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
        if rank == 0:
            torch.save(seconds, Path(folder) / "seconds.pth")
    finally:
        dist.destroy_process_group()

"""The blocks of ``tools/gpu_check.py``: each takes the device and the scale and returns numbers by name."""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.parity import parity
from benchmarks.gpu_check.recipes import SMALL, build
from benchmarks.speed import benchmark
from benchmarks.speed.data import write_photos
from benchmarks.speed.step import OurStep
from benchmarks.speed.timing import Clock, measure_in_turn, peak_memory
from updetr_d2.config.files import get_config_file

ROOT = Path(__file__).resolve().parents[2]
Values = dict[str, float | int | str]
PRETRAINING = "pretrain/updetr_r50_imagenet_60ep.yaml"


def gpu_tests(device: str, small: bool) -> Values:
    """The tests with the marker ``gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"exit code": done.returncode, "summary": done.stdout.strip().splitlines()[-1]}


def waits(device: str, small: bool) -> Values:
    """How often the host waits in a step, as PyTorch counts it."""
    step = _step(PRETRAINING, device, small)
    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(3):
            step()
        torch.cuda.set_sync_debug_mode("default")
    found = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    return {"waits of three steps (expected: 3)": len(found)}


def attention(device: str, small: bool) -> Values:
    """PyTorch's attention kernels with the masks of our transformers, against the one that is written out."""
    torch.manual_seed(0)
    tokens, queries = (96, 20) if small else (266, 100)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    key = torch.randn(4, 8, tokens, 32, device=device, dtype=dtype)
    query = torch.randn(4, 8, queries, 32, device=device, dtype=dtype)
    padding = torch.arange(tokens, device=device) < torch.tensor([tokens, 70, 50, 90], device=device)[:, None]
    group = torch.arange(queries, device=device) // 10
    cases = {
        "no mask": (query, key, None),
        "padding": (query, key, padding[:, None, None]),
        "groups": (query, query, group[:, None] == group),
    }
    values: Values = {}
    for case, (q, k, mask) in cases.items():
        with sdpa_kernel(SDPBackend.MATH):
            expected = F.scaled_dot_product_attention(q.float(), k.float(), k.float(), attn_mask=mask)
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
        ):
            name = f"{case}, {backend.name.lower()}"
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter("ignore")  # why a kernel does not take it
                try:
                    found = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
                except RuntimeError:
                    values[name] = "not for this"
                else:
                    values[f"{name}, largest error"] = float((found.float() - expected).abs().max())
    return values


def attention_plans(device: str, small: bool) -> Values:
    """Whether cuDNN plans for each new shape: time of the first call at 20 shapes, with and without it."""
    values: Values = {}
    for name, backends in {
        "PyTorch's choice": list(SDPBackend.__members__.values())[1:],
        "without cuDNN": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    }.items():
        seconds = []
        for i in range(20):
            x = torch.randn(2, 8, 100 + 7 * i, 32, device=device, dtype=torch.bfloat16)
            torch.cuda.synchronize()
            start = time.perf_counter()
            with sdpa_kernel(backends):
                F.scaled_dot_product_attention(x, x, x)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        values[f"{name}, ms at a new shape"] = 1e3 * sorted(seconds)[len(seconds) // 2]
    return values


def fused_convolution(device: str, small: bool) -> Values:
    """cuDNN's convolution with bias and ReLU in one, against the three by themselves (bf16, channels-last)."""
    torch.manual_seed(0)
    x = torch.randn(8, 256, 56, 75, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=torch.bfloat16)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fused() -> torch.Tensor:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, (1, 1), (1, 1), (1, 1), 1)

    with torch.inference_mode():
        times = measure_in_turn(
            {"plain": lambda: F.relu(conv(x)), "fused": fused},
            repeats=20,
            warmup=5,
            clock=Clock(torch.device(device)),
        )
        error = float((fused().float() - F.relu(conv(x)).float()).abs().max())
    backbones = {}
    for fuse in ("False", "True"):  # MODEL.FUSE_FROZEN
        _, model, _ = build(PRETRAINING, device, small, "MODEL.FUSE_FROZEN", fuse)
        backbones[fuse] = model.eval().backbone
    images = torch.randn(4, 3, 448, 608, device=device)
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        cnn_times = measure_in_turn(
            {fuse: functools.partial(backbone, images) for fuse, backbone in backbones.items()},
            repeats=10,
            warmup=3,
            clock=Clock(torch.device(device)),
        )
    return {
        **{f"CNN, MODEL.FUSE_FROZEN {name}, ms": 1e3 * sorted(cnn_times[name])[5] for name in cnn_times},
        "largest error": error,
        "is channels-last": str(fused().is_contiguous(memory_format=torch.channels_last)),
        **{f"{name}, ms": 1e3 * sorted(seconds)[10] for name, seconds in times.items()},
    }


def processes(device: str, small: bool) -> Values:
    """A step under DDP in a group of one process, with and without ``device_ids``."""
    on_gpu = device.startswith("cuda")
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=f"file://{store.name}", rank=0, world_size=1
        )
        comm.create_local_process_group(1)
        cfg, model, samples = build(PRETRAINING, device, small)
        ways: dict[str, list[int] | None] = {"device_ids None": None}
        if on_gpu:
            ways["device_ids [0]"] = [0]
        steps = {}
        for name, device_ids in ways.items():
            step = OurStep(cfg, model, samples, Clock(torch.device(device)))
            step.loop.model = nn.parallel.DistributedDataParallel(
                model, device_ids=device_ids, broadcast_buffers=False
            )
            steps[name] = step
        times = measure_in_turn(steps, repeats=3, warmup=1, clock=Clock(torch.device(device)))
        dist.destroy_process_group()
    return {f"{name}, ms a step": 1e3 * min(seconds) for name, seconds in times.items()}


def step(device: str, small: bool) -> Values:
    """Training steps of the paper's recipe in float32 and bfloat16, beside the reference."""
    values: Values = {}
    for name, options in {"float32": ["False"], "bfloat16": ["True"]}.items():
        cfg, model, samples = build(PRETRAINING, device, small, "SOLVER.AMP.ENABLED", options[0])
        ours = OurStep(cfg, model, samples, Clock(torch.device(device)))
        repeats = 3 if small else 20
        times = measure_in_turn({"ours": ours}, repeats=repeats, warmup=3, clock=ours.clock)["ours"]
        seconds = sorted(times)[len(times) // 2]
        values[f"{name}, ms"] = 1e3 * seconds
        values[f"{name}, images/s"] = len(samples) / seconds
        for part, value in ours.parts().items():
            values[f"{name} / {part}, ms"] = 1e3 * value
    return values


def reference(device: str, small: bool) -> Values:
    """``benchmark.py step --compare`` and ``inference --compare``: the same numbers, and how much faster."""
    values: Values = {}
    for command in ("step", "inference"):
        size = ["64", "96"] if small else ["450", "600"]
        arguments = [
            command,
            "--config-file",
            get_config_file(PRETRAINING),
            "--compare",
            "--repeats",
            "3",
            "--image-size",
            *size,
        ]
        arguments += ["--batch-size", "1" if small else "8"]
        options = ["MODEL.DEVICE", device, *(map(str, SMALL) if small else ())]
        args = benchmark.argument_parser().parse_args([*arguments, *options])
        args.clock = Clock(torch.device(device))
        measured = benchmark.COMMANDS[command].run(args, benchmark.setup(args))[0]
        assert measured.ratio is not None
        values |= {f"{command}, ms": 1e3 * measured.median, f"{command}, times as fast": measured.ratio}
    return values


def hand_over(device: str, small: bool) -> Values:
    """What the training process does for a sample of the loader workers."""
    arguments = [
        "hand-over",
        "--config-file",
        get_config_file(PRETRAINING),
        "--compare",
        "--repeats",
        "1" if small else "3",
    ]
    arguments += ["--samples", "32" if small else "512", "MODEL.DEVICE", device]
    args = benchmark.argument_parser().parse_args(arguments)
    args.clock = Clock(torch.device(device))
    measured = benchmark.COMMANDS["hand-over"].run(args, benchmark.setup(args))[0]
    assert measured.images is not None and measured.ratio is not None
    return {"ms a sample": 1e3 * measured.median / measured.images, "times as fast": measured.ratio}


def training(device: str, small: bool) -> Values:
    """A run of ``tools/train_net.py`` on generated photos that is stopped by SIGTERM and resumed."""
    iterations = 12 if small else 200
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 16, 96, 64) if small else write_photos(Path(folder), 64, 640, 480)
        output = Path(folder) / "run"
        options = ["MODEL.RESNETS.DEPTH", "18", "INPUT.MIN_SIZE_TRAIN", "(64,)"] if small else []
        command = [sys.executable, "tools/train_net.py", "--config-file", PRETRAINING, "--resume", *options]
        command += ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", f"('folder:{folder}',)"]
        command += ["DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "4" if small else "16"]
        command += ["SOLVER.EPOCHS", "0", "SOLVER.EPOCH_STEPS", "()", "SOLVER.MAX_ITER", str(iterations)]
        command += [
            "SOLVER.CHECKPOINT_EPOCHS",
            "0",
            "SOLVER.CHECKPOINT_PERIOD",
            "100000",
            "TEST.EVAL_EPOCHS",
            "0",
        ]
        command += ["DATALOADER.NUM_WORKERS", "1" if small else "4", "OUTPUT_DIR", str(output)]
        first = _stop_in_training(command, output)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        done = (output / "model_final.pth").exists()
    return {
        "exit code after SIGTERM (75)": first,
        "exit code of --resume": second.returncode,
        "finished": str(done),
    }


def _stop_in_training(command: list[str], output: Path) -> int:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = output / "log.txt"
    try:
        # Before that a signal ends the process at once.
        while process.poll() is None and not (log.is_file() and "Starting training" in log.read_text()):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        return process.wait()
    finally:
        process.kill()


def panoptic_memory(device: str, small: bool) -> Values:
    """Memory that panoptic inference of one image takes on top of the weights."""
    _, model, samples = build("panoptic/detr_r50_coco_panoptic.yaml", device, small)
    model.eval()

    def infer() -> None:
        with torch.inference_mode():
            model(samples[:1])

    infer()
    peak = peak_memory(infer, torch.device(device))
    return {} if peak is None else {"MiB": peak}


def _step(recipe: str, device: str, small: bool) -> OurStep:
    cfg, model, samples = build(recipe, device, small)
    return OurStep(cfg, model, samples, Clock(torch.device(device)))


class Block(NamedTuple):
    """A function of the device and the scale, and whether it makes sense on a GPU only."""

    run: Callable[[str, bool], Values]
    needs_gpu: bool = False


BLOCKS: dict[str, Block] = {
    "gpu-tests": Block(gpu_tests, needs_gpu=True),
    "parity": Block(parity),
    "attention": Block(attention),
    "attention-plans": Block(attention_plans, needs_gpu=True),
    "waits": Block(waits, needs_gpu=True),
    "processes": Block(processes),
    "step": Block(step),
    "reference": Block(reference),
    "fused-convolution": Block(fused_convolution, needs_gpu=True),
    "hand-over": Block(hand_over),
    "training": Block(training),
    "panoptic-memory": Block(panoptic_memory),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("device")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(json.dumps(BLOCKS[args.block].run(args.device, args.small)))


if __name__ == "__main__":
    main()

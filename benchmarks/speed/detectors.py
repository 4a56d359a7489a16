"""Parameters, FLOPs, step time and memory of detectors at one image size, each in a process of its own.

    python -m benchmarks.speed.detectors coco/detr_r50_coco_150ep.yaml coco/dino_r50_4scale_coco_12ep.yaml

Random weights and pixels; a step is a forward and a backward pass on the CPU, the second one is timed. FLOPs are
multiplications and additions of the forward pass in matrix products, convolutions and attention, as
``torch.utils.flop_counter`` counts them: sampling in deformable attention is not among them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.synthetic import build_random_model, random_samples
from updetr_d2 import add_updetr_config
from updetr_d2.config.files import find_config_file, merge_config_file


def load_config(name: str) -> CfgNode:
    """A recipe for the CPU, without the weights that it starts from."""
    cfg = get_cfg()
    add_updetr_config(cfg)
    merge_config_file(cfg, find_config_file(name))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.DETR.NUM_CLASSES = cfg.MODEL.DETR.NUM_CLASSES or 80  # 0: from a data set
    return cfg


def measure(cfg: CfgNode, *, batch_size: int, size: tuple[int, int], num_targets: int) -> dict[str, float]:
    """Figures of a detector in this process.

    Args:
        cfg: of a detector.
        batch_size: images of a step.
        size: (height, width) of the images, px.
        num_targets: objects of each image.
    """
    model = build_random_model(cfg)
    samples = random_samples(cfg, batch_size=batch_size, size=size, num_targets=num_targets)
    counter = FlopCounterMode(display=False)
    model.eval()
    with counter:  # with gradients: it hangs hooks on them
        model(samples)
    model.train()
    seconds = 0.0
    with EventStorage():
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            sum(model(samples).values()).backward()
            seconds = time.perf_counter() - start
    return {
        "parameters (M)": sum(p.numel() for p in model.parameters()) / 1e6,
        "GFLOPs of an image": counter.get_total_flops() / batch_size / 1e9,
        "step (s)": seconds,
        "peak memory (GiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="files, or names of recipes")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), help="height and width, px")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--targets", type=int, default=7, help="objects of an image (COCO has 7)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if args.one:
        cfg = load_config(args.configs[0])
        size = (args.size[0], args.size[1])
        print(json.dumps(measure(cfg, batch_size=args.batch_size, size=size, num_targets=args.targets)))
        return
    rows = []
    for name in args.configs:
        options = ["--size", *map(str, args.size), "--batch-size", str(args.batch_size)]
        command = [sys.executable, "-m", "benchmarks.speed.detectors", name, "--one", *options]
        command += ["--targets", str(args.targets)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({"detector": name, **json.loads(output.splitlines()[-1])})
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()

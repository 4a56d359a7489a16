"""Start a main function on all processes, whichever launcher the user prefers."""

import os
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm


def launch(main: Callable[[Namespace], object], args: Namespace) -> object:
    """Run ``main(args)`` in every process: under ``torchrun`` in this one, else through Detectron2's ``launch``.

    Without GPUs, ``--num-gpus`` is the number of CPU processes on the machine (gloo).

    Args:
        main: importable function of the parsed arguments.
        args: Detectron2's default arguments.

    Returns:
        what ``main`` returned, where it ran in this process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if args.num_gpus * args.num_machines > 1:
            return detectron2_launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        return main(args)
    use_gpu = torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    try:
        return main(args)
    finally:
        dist.destroy_process_group()

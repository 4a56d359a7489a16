"""What several GPUs need of a run's settings, as far as it can be told without one."""

import os
from argparse import Namespace

import pytest
import torch
from detectron2.utils import comm
from helpers import random_sample, tiny_cfg, tiny_model
from processes import run_processes

from updetr_d2.cli.train import configured_device
from updetr_d2.config.checks import check_common_config
from updetr_d2.data.loading.build import images_per_process
from updetr_d2.engine import launch as launching
from updetr_d2.engine.launch import launch
from updetr_d2.engine.trainer import amp_dtype, checks_late, distribute


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)


def test_cpu_processes_neither_count_nor_see_the_gpus(one_gpu, monkeypatch):
    """Detectron2 gives each process a GPU and NCCL where it sees one."""
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(
        launching, "detectron2_launch", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    )
    arguments = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    launch(print, arguments, device="cpu")
    assert seen == [""]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(ValueError, match="--num-gpus is 2, but torch sees 1 here"):
        launch(print, arguments, device="cuda")


def test_the_device_of_the_run_is_known_before_its_processes_start():
    def device(*options):
        return configured_device(Namespace(config_file="voc/detr_r50_voc_150ep.yaml", opts=list(options)))

    assert device() == "cuda"
    assert device("MODEL.DEVICE", "cpu") == "cpu"
    assert device("MODEL.NO_SUCH_KEY", "cpu") == "cuda"  # refused later, with advice


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(comm, "get_local_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    try:
        assert launching._run_in_process_group(lambda _: torch.get_num_threads(), Namespace()) == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        assert launching._run_in_process_group(lambda _: torch.get_num_threads(), Namespace()) == 1
    finally:
        torch.set_num_threads(1)


def test_one_gpu_for_several_processes_is_refused(one_gpu, monkeypatch):
    cfg = tiny_cfg("DETR", "MODEL.DEVICE", "cuda:0", "SOLVER.IMS_PER_BATCH", 2)
    check_common_config(cfg)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(
        ValueError, match=r"MODEL\.DEVICE is 'cuda:0', which all 2 processes would share; use cuda,"
    ):
        check_common_config(cfg)


def distributed_losses():
    """Whether DDP hands the samples to the model as they are: with device_ids it copies every tensor, blocking."""
    model = distribute(tiny_model("DETR"))
    batch = [random_sample(64, 64)]
    seen = []
    model.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]["image"]))
    model(batch)
    return model.device_ids is None and seen[0] is batch[0]["image"]


def test_ddp_leaves_the_samples_to_the_model():
    assert run_processes(2, distributed_losses) == [True, True]


@pytest.mark.parametrize(
    ("options", "has_bf16", "expected"),
    [
        (("MODEL.DEVICE", "cuda", "SOLVER.AMP.AUTO", True), True, torch.bfloat16),
        (("MODEL.DEVICE", "cuda", "SOLVER.AMP.AUTO", True), False, None),
        (("MODEL.DEVICE", "cpu", "SOLVER.AMP.AUTO", True), True, None),
        (("MODEL.DEVICE", "cuda"), True, None),
        (("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", True), False, torch.bfloat16),
    ],
)
def test_bfloat16_where_the_gpu_has_it(options, has_bf16, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    assert amp_dtype(tiny_cfg("DETR", *options)) == expected


def test_a_batch_that_cannot_be_split_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    options = ("SOLVER.IMS_PER_BATCH", 12, "SOLVER.ACCUMULATION_STEPS")
    assert images_per_process(tiny_cfg("DETR", *options, 3)) == 6
    message = (
        r"IMS_PER_BATCH \(12\) must be a multiple of the 2 processes times SOLVER\.ACCUMULATION_STEPS \(4\)"
    )
    with pytest.raises(ValueError, match=message):
        images_per_process(tiny_cfg("DETR", *options, 4))


@pytest.mark.parametrize(
    ("device", "asked", "expected"), [("cuda", True, True), ("cuda:1", False, False), ("cpu", True, False)]
)
def test_numbers_are_looked_at_late_where_there_is_a_gpu_to_wait_for(device, asked, expected):
    assert checks_late(tiny_cfg("DETR", "MODEL.DEVICE", device, "SOLVER.LATE_CHECK", asked)) == expected

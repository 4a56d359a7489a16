"""Runs of ``tools/train_net.py`` that are killed, stopped or lose a process, and what becomes of them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from helpers import SMALL_PRETRAINING, run_train_net, write_photos
from tiny_coco import write_tiny_coco

from updetr_d2 import add_updetr_config
from updetr_d2.checkpoint.run_files import SaveError
from updetr_d2.engine.bad_batches import load_bad_batch, replay
from updetr_d2.engine.preemption import STOPPED_EXIT_CODE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

OPTIONS = (
    *SMALL_PRETRAINING,
    *("DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0"),
    *("SOLVER.MAX_ITER", "36", "SOLVER.STEPS", "(12,)", "SOLVER.CHECKPOINT_PERIOD", "3"),
    *("SOLVER.KEEP_CHECKPOINTS", "3", "MODEL.UPDETR.QUERY_SHUFFLE", "True"),
)
# What stands before and after the script, with the number of processes.
LAUNCHERS = {
    "one": ("", ""),
    "launch": ("", "--num-gpus {count} --dist-url auto"),
    "torchrun": ("-m torch.distributed.run --nproc-per-node {count} --standalone", ""),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 11)
    return folder


class Run:
    """A training process in a session of its own, with its output in a file.

    Args:
        photos: folder of training images.
        output: ``OUTPUT_DIR``.
        launcher: key of LAUNCHERS.
        options: config keys and values, and flags.
        count: processes, unless the launcher is "one".
        script: in the place of tools/train_net.py.
        config: recipe; those of detection name their data in the options.
    """

    def __init__(
        self,
        photos,
        output,
        *options,
        launcher="one",
        count=2,
        script=ROOT / "tools/train_net.py",
        config="pretrain/updetr_r50_imagenet_60ep.yaml",
    ):
        before, after = (part.format(count=count).split() for part in LAUNCHERS[launcher])
        config = ROOT / "configs" / config
        flags = [each for each in options if each.startswith("--")]
        command = [sys.executable, *before, str(script), "--config-file", str(config)]
        command += [*after, *flags, "DATASETS.TRAIN", f'("folder:{photos}",)', "OUTPUT_DIR", str(output)]
        command += [*OPTIONS, *(each for each in options if not each.startswith("--"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "UPDETR_D2_CACHE": str(photos.parent / "cache")}
        output.mkdir(exist_ok=True)
        self.output = output
        self.console = output / "console.txt"
        with open(self.console, "w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def text(self):
        return self.console.read_text(errors="replace")

    def wait_for(self, condition, seconds=300):
        """Wait until ``condition()`` is true; False if the process ends before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, self.text()[-3000:]
            time.sleep(0.002)
        return True

    def wait_for_iteration(self, iteration):
        """Wait for the checkpoint of an iteration or a later one."""
        return self.wait_for(lambda: any(number >= iteration for number in saved_iterations(self.output)))

    def family(self):
        """This process and all below it."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def finish(self, codes=(0,), seconds=300):
        assert self.process.wait(seconds) in codes, self.text()[-4000:]
        return self.text()


def saved_iterations(output):
    return [int(path.stem[6:]) for path in output.glob("model_0*.pth")]


def weights(output):
    """Of the model and, where there are any, the averaged ones."""
    saved = torch.load(output / "model_final.pth", weights_only=True)
    averaged = saved["model_ema"]["model"] if "model_ema" in saved else {}
    return {**saved["model"], **{f"average of {name}": tensor for name, tensor in averaged.items()}}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_gone(processes, seconds=60):
    """No process of a run may stay behind, be it a loader worker or another rank."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, [" ".join(process.cmdline()) for process in alive]


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    """Output folders of runs that nobody disturbed, made when first asked for."""
    made = {}

    def get(launcher="one"):
        kind = "one" if launcher == "one" else "two"
        if kind not in made:
            run = Run(photos, tmp_path_factory.mktemp(f"uninterrupted_{kind}"), launcher=launcher)
            run.finish()
            made[kind] = run.output
        return made[kind]

    return get


def does_work(process):
    """Whether a run cannot go on without a process; it can without the one that clears up shared memory."""
    return not any("resource_tracker" in part for part in process.cmdline())


def kill_and_resume(photos, output, *options, launcher, kills, seed, **run_options):
    """Kill -9 at random moments, every second time in the middle of writing a checkpoint.

    Each run gets as far as a checkpoint of its own before, so that all of them go on from another.

    Returns:
        number of kills, and how many of them left a half-written file.
    """
    rng = random.Random(seed)
    killed = torn = 0
    flags = ()
    while killed < kills or not torn:
        newest = max(saved_iterations(output), default=-1)
        run = Run(photos, output, *options, *flags, launcher=launcher, **run_options)
        flags = ("--resume",)
        assert run.wait_for_iteration(newest + 1), run.text()[-3000:]
        family = run.family()
        # Of several processes any one: the launcher, a rank or a loader worker of it.
        victim = family[0] if launcher == "one" else rng.choice([each for each in family if does_work(each)])
        time.sleep(rng.uniform(0, 0.4))
        if killed % 2 == 0:
            run.wait_for(lambda: any(output.glob("*.pth.tmp")))
        assert run.process.poll() is None, "the run was over before it could be killed"
        victim.kill()
        run.process.wait(120)
        assert_gone(family)
        killed += 1
        torn += any(output.glob("*.pth.tmp"))
    text = Run(photos, output, *options, "--resume", launcher=launcher, **run_options).finish()
    assert "Starting training from iteration 0" not in text
    return killed, torn


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    photos, uninterrupted, tmp_path, num_workers
):
    killed, torn = kill_and_resume(
        photos,
        tmp_path,
        "DATALOADER.NUM_WORKERS",
        num_workers,
        launcher="one",
        kills=2,
        seed=int(num_workers),
    )
    assert killed >= 2
    assert torn >= 1
    assert_same_weights(tmp_path, uninterrupted())
    assert len(saved_iterations(tmp_path)) == 3  # SOLVER.KEEP_CHECKPOINTS
    assert not any(tmp_path.glob("*.tmp"))


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "kills"), [("one", 2), ("launch", 1)])
def test_a_killed_mean_teacher_ends_with_the_student_and_the_teacher_of_an_uninterrupted_run(
    photos, tmp_path, launcher, kills
):
    options = (
        *(
            "DATASETS.TRAIN",
            f'("{write_tiny_coco(tmp_path)}",)',
            "DATASETS.UNLABELED",
            f'("folder:{photos}",)',
        ),
        *("MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER", "False", "INPUT.DETR_CROP.RESIZE_SIDES", "(64, 96)"),
        *(
            "INPUT.DETR_CROP.CROP_SIDE_RANGE",
            "(40, 64)",
            "SOLVER.IMS_PER_BATCH",
            "2",
            "SOLVER.EMA.ENABLED",
            "True",
        ),
        *("SOLVER.MEAN_TEACHER.BURN_IN_ITERS", "4", "SOLVER.MEAN_TEACHER.RAMP_ITERS", "9"),
        # The scores of a fresh model.
        *("SOLVER.MEAN_TEACHER.SCORE_THRESH", "0.1", "SOLVER.MEAN_TEACHER.UNCERTAIN_SCORE", "0.02"),
        *("SOLVER.MEAN_TEACHER.CLASS_QUANTILE", "0.5"),
        *("DATALOADER.NUM_WORKERS", "2", "SOLVER.MAX_ITER", "24", "MODEL.BACKBONE.FREEZE_AT", "5"),
    )
    config = "custom/updetr_r50_finetune.yaml"
    calm = Run(photos, tmp_path / "calm", *options, launcher=launcher, config=config)
    calm.finish()
    killed, torn = kill_and_resume(
        photos, tmp_path / "killed", *options, launcher=launcher, kills=kills, seed=5, config=config
    )
    print(f"survived {killed} kills, {torn} of them while a checkpoint was written")
    assert killed >= kills
    assert_same_weights(calm.output, tmp_path / "killed")
    assert any(name.startswith("average of ") for name in weights(calm.output))
    assert logged(calm.output)["pseudo_boxes"] > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "num_workers", "kills"),
    [("one", "0", 10), ("one", "2", 10), ("launch", "0", 4), ("launch", "2", 4), ("torchrun", "2", 4)],
)
def test_a_run_survives_many_kills(photos, tmp_path, launcher, num_workers, kills):
    options = ("SOLVER.MAX_ITER", "120", "SOLVER.STEPS", "(40,)", "DATALOADER.NUM_WORKERS", num_workers)
    calm = Run(photos, tmp_path / "calm", *options, launcher=launcher)
    calm.finish()
    killed, torn = kill_and_resume(
        photos, tmp_path / "killed", *options, launcher=launcher, kills=kills, seed=3
    )
    print(f"survived {killed} kills, {torn} of them while a checkpoint was written")
    assert killed >= kills
    assert torn >= kills // 3
    assert_same_weights(calm.output, tmp_path / "killed")


def stop_and_resume(photos, output, *options, launcher, number, to):
    run = Run(photos, output, *options, launcher=launcher)
    assert run.wait_for_iteration(5)
    family = run.family()
    if to == "all":  # as a cluster, or Ctrl-C in a terminal, does
        for process in family:
            process.send_signal(number)
    else:
        to(family).send_signal(number)
    # torchrun has codes of its own, 1 or now and then that of an abort while it ends.
    text = run.finish((1, -signal.SIGABRT) if launcher == "torchrun" else (STOPPED_EXIT_CODE,))
    assert_gone(family)
    last = (output / "last_checkpoint").read_text()
    stopped_at = int(last.removeprefix("model_").removesuffix(".pth"))
    assert f"Stopped by {signal.Signals(number).name} after iteration {stopped_at} with a checkpoint" in text
    assert "Traceback" not in text or launcher == "torchrun"  # torchrun shows one of its own
    resumed = Run(photos, output, *options, "--resume", launcher=launcher).finish()
    assert f"Starting training from iteration {stopped_at + 1}" in resumed


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_and_the_run_goes_on_from_there(photos, uninterrupted, tmp_path, number):
    # No periodic checkpoint can help: what is resumed is the one that the signal has saved.
    stop_and_resume(photos, tmp_path, "DATALOADER.NUM_WORKERS", "2", launcher="one", number=number, to="all")
    assert_same_weights(tmp_path, uninterrupted())


def launcher_of(family):
    return family[0]


def one_rank(family):
    """A training process that the launcher has started."""
    ranks = [each for each in family[1:] if each.ppid() == family[0].pid and each.num_threads() > 1]
    return ranks[-1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "number", "to"),
    [
        ("launch", signal.SIGTERM, launcher_of),
        ("launch", signal.SIGTERM, one_rank),
        ("launch", signal.SIGTERM, "all"),
        ("launch", signal.SIGINT, "all"),
        ("torchrun", signal.SIGTERM, launcher_of),
        ("torchrun", signal.SIGTERM, one_rank),
        ("torchrun", signal.SIGINT, "all"),
    ],
)
def test_a_signal_stops_all_processes_with_a_checkpoint(
    photos, uninterrupted, tmp_path, launcher, number, to
):
    options = ("DATALOADER.NUM_WORKERS", "2")
    stop_and_resume(photos, tmp_path, *options, launcher=launcher, number=number, to=to)
    assert_same_weights(tmp_path, uninterrupted(launcher))


DYING = """
import os, signal, sys
sys.path.insert(0, {tools!r})
import train_net
from detectron2.engine import HookBase, default_argument_parser
from detectron2.utils import comm
from updetr_d2.engine.launch import launch
from updetr_d2.engine.trainer import UPDETRTrainer

class Die(HookBase):
    def after_step(self):
        if comm.get_rank() == 1 and self.trainer.iter == 2:
            if {killed}:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the second process is broken")

def main(args):
    trainer = UPDETRTrainer(train_net.setup(args))
    trainer.register_hooks([Die()])
    trainer.train()

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
"""


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
@pytest.mark.parametrize("killed", [False, True], ids=["raises", "killed"])
def test_a_process_that_dies_ends_the_others_and_its_error_is_shown(photos, tmp_path, launcher, killed):
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(tools=str(ROOT / "tools"), killed=killed))
    options = (
        "DATALOADER.NUM_WORKERS",
        "1",
        "SOLVER.MAX_ITER",
        "100000",
        "SOLVER.CHECKPOINT_PERIOD",
        "100000",
    )
    run = Run(photos, tmp_path / "out", *options, launcher=launcher, script=script)
    assert run.wait_for(lambda: "Starting training from iteration" in run.text())
    family = run.family()
    assert len(family) >= 3
    assert run.process.wait(60) not in (0, 75)
    assert_gone(family)
    text = run.text()
    if not killed:
        assert "RuntimeError: the second process is broken" in text
    elif launcher == "launch":
        assert "process 1 terminated with signal SIGKILL" in text
        assert "Process 1 was killed, probably because memory ran out" in text
    else:
        assert "SIGKILL" in text


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_two_and_three_processes_have_the_loss_of_one(photos, tmp_path, launcher):
    options = (
        *("SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "(4,)", "SOLVER.IMS_PER_BATCH", "6"),
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
        # What is drawn in each process for itself.
        *(
            "MODEL.UPDETR.MASK_RATIO",
            "0.0",
            "MODEL.UPDETR.QUERY_SHUFFLE",
            "False",
            "MODEL.DETR.DROPOUT",
            "0.0",
        ),
        *("DATALOADER.ASPECT_RATIO_GROUPING", "False"),
        # The padding of a batch reaches the edges of its smaller images through the CNN: one size only.
        *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
    )
    wide = tmp_path / "wide"
    wide.mkdir()
    for i in range(11):
        if i % 3:
            shutil.copy(photos / f"{i}.jpg", wide)
    Run(wide, tmp_path / "1", *options).finish()
    expected = logged(tmp_path / "1")
    for count in (2, 3):
        output = tmp_path / str(count)
        Run(wide, output, *options, launcher=launcher, count=count).finish()
        assert logged(output)["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-5)
        one, other = weights(tmp_path / "1"), weights(output)
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def logged(output):
    return json.loads((output / "metrics.json").read_text().splitlines()[-1])


def train_here(photos, output, *options):
    """Train in this process."""
    config = "pretrain/updetr_r50_imagenet_60ep.yaml"
    data = ("DATASETS.TRAIN", f'("folder:{photos}",)')
    return run_train_net(
        config, output, *OPTIONS, *data, "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(2,)", *options
    )


@pytest.fixture
def _cache(photos, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(photos.parent / "cache"))


@pytest.mark.usefixtures("_cache")
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(photos, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.rand(len(name))  # what happened before must not matter
        train_here(photos, tmp_path / name, "SEED", seed)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        weights(tmp_path / "a")["query_embed.weight"], weights(tmp_path / "c")["query_embed.weight"]
    )


@pytest.mark.usefixtures("_cache")
def test_a_diverging_run_stops_and_leaves_what_reproduces_it(photos, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"Iteration [12] is not finite .*\.jpg.*bad_batches"
    ) as error:
        train_here(photos, tmp_path, "SOLVER.BASE_LR", "1e30")
    iteration = int(str(error.value).split()[1])
    folder = tmp_path / "bad_batches"
    saved = load_bad_batch(folder / f"iteration_{iteration:07d}_rank_0.pth")
    assert all(sample["file_name"] in str(error.value) for sample in saved["batch"])
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(folder / f"iteration_{iteration:07d}_weights.pth"))
    try:
        losses = replay(model, saved)
    except FloatingPointError:
        return
    assert not all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.usefixtures("_cache")
def test_steps_that_are_not_finite_can_be_left_out(photos, tmp_path):
    metrics = train_here(photos, tmp_path, "SOLVER.BASE_LR", "1e30", "SOLVER.SKIP_NONFINITE_STEPS", 2)
    assert metrics["iteration"] == 2
    assert len(list((tmp_path / "bad_batches").glob("*_rank_0.pth"))) in (1, 2)


@pytest.mark.usefixtures("_cache")
def test_an_output_folder_that_cannot_be_made_is_one_clear_error(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"OUTPUT_DIR '.*file/run' cannot be made"):
        train_here(photos, tmp_path / "file" / "run")

"""The step of a mean teacher: what is learned from which image with which weight, on three detectors."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers import DEFORMABLE, DINO, random_sample, tiny_cfg, tiny_model
from processes import run_processes
from torch import nn

from updetr_d2.config.build import build_model
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.trainer import distribute
from updetr_d2.mean_teacher.step import MeanTeacherStep, Ramp

GROUP = "SOLVER.MEAN_TEACHER"
SCHEDULE = (f"{GROUP}.BURN_IN_ITERS", 10, f"{GROUP}.RAMP_ITERS", 4, f"{GROUP}.WEIGHT", 2.0)


class Oracle(nn.Module):
    """A teacher that says for each image what it was told to, and remembers the images."""

    def __init__(self, detections):
        super().__init__()
        self.detections = detections

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        self.images = [sample["image"] for sample in batch]
        return [{"instances": each} for each in self.detections]


def unlabeled_sample():
    """The strong view is the weak view of 64×96 px in double size."""
    return {
        "file_name": "u.jpg",
        "image": torch.randint(256, (3, 128, 192), dtype=torch.uint8),
        "weak_image": torch.randint(256, (3, 64, 96), dtype=torch.uint8),
        "strong_from_weak": torch.tensor([[2.0, 0, 0], [0, 2, 0]], dtype=torch.float64),
        "erased": torch.zeros(0, 4, dtype=torch.int64),
    }


def detections():
    return Instances(
        (64, 96),
        pred_boxes=Boxes(torch.tensor([[4.0, 4, 30, 30], [40, 10, 90, 60], [50, 30, 60, 40]])),
        scores=torch.tensor([0.9, 0.6, 0.2]),
        pred_classes=torch.tensor([1, 3, 0]),
    )


@pytest.mark.parametrize("options", [(), DEFORMABLE, DINO], ids=["DETR", "Deformable DETR", "DINO"])
def test_losses_are_those_of_labels_and_of_weighted_pseudo_labels(options):
    torch.manual_seed(0)
    cfg = tiny_cfg("DETR", *options, *SCHEDULE)
    model = build_model(cfg)
    teacher = Oracle([detections(), detections()[:0]])
    step = MeanTeacherStep(cfg, teacher=teacher)
    labeled = [random_sample(), random_sample()]
    unlabeled = [unlabeled_sample(), unlabeled_sample()]
    torch.manual_seed(1)
    losses, scalars = step(model, labeled + unlabeled, 11)
    assert all(map(torch.equal, teacher.images, [sample["weak_image"] for sample in unlabeled]))

    expected = copy.deepcopy(unlabeled)
    boxes = torch.tensor([[8.0, 8, 60, 60], [80, 20, 180, 120]])
    expected[0]["instances"] = Instances((128, 192), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([1, 3]))
    expected[0]["uncertain_boxes"] = Boxes(torch.tensor([[100.0, 60, 120, 80]]))
    torch.manual_seed(1)
    pseudo = model(expected)
    assert losses.keys() == {*pseudo, *(f"{name}_pseudo" for name in pseudo)}
    for name, value in pseudo.items():
        # Iteration 11 is the second of four on the way up to the weight 2.
        torch.testing.assert_close(losses[f"{name}_pseudo"], 2.0 * 2 / 4 * value)
    for name, value in model(labeled).items():
        if "_dn" not in name:  # noise is drawn anew
            torch.testing.assert_close(losses[name], value)
    assert float(scalars["pseudo_boxes"]) == 1.0
    assert float(scalars["pseudo_uncertain_boxes"]) == 0.5
    assert float(scalars["pseudo_score"]) == pytest.approx(0.75)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_burn_in_is_on_labels_alone():
    cfg = tiny_cfg("DETR", *SCHEDULE)
    model = build_model(cfg)
    step = MeanTeacherStep(cfg, teacher=Oracle([]))
    labeled = [random_sample()]
    for batch, iteration in ((labeled, 50), ([*labeled, unlabeled_sample()], 9)):
        losses, scalars = step(model, batch, iteration)
        assert losses.keys() == model(labeled).keys()
        assert not scalars


def test_the_weight_rises_on_a_straight_line():
    ramp = Ramp(weight=2.0, burn_in=10, length=4)
    assert [ramp(i) for i in (0, 9, 10, 11, 12, 13, 14, 99)] == [0, 0, 0.5, 1, 1.5, 2, 2, 2]
    assert [Ramp(3.0, 5, 0)(i) for i in (4, 5, 6)] == [0, 3, 3]


def test_precision_and_recall_are_logged_where_labels_are_known():
    cfg = tiny_cfg("DETR", *SCHEDULE)
    sample = unlabeled_sample()
    sample["true_instances"] = Instances(
        (64, 96), gt_boxes=Boxes(torch.tensor([[4.0, 4, 30, 31]])), gt_classes=torch.tensor([1])
    )
    step = MeanTeacherStep(cfg, teacher=Oracle([detections()]))
    _, scalars = step(build_model(cfg), [random_sample(), sample], 20)
    assert float(scalars["pseudo_precision"]) == 0.5
    assert float(scalars["pseudo_recall"]) == 1.0


def test_a_real_teacher_s_boxes_are_in_the_pixels_of_its_image():
    teacher = tiny_model("DETR").eval()
    cfg = tiny_cfg("DETR", *SCHEDULE, f"{GROUP}.SCORE_THRESH", 0.0, f"{GROUP}.UNCERTAIN_SCORE", 0.0)
    sample = unlabeled_sample()
    step = MeanTeacherStep(cfg, teacher=teacher)
    (labels,) = step.predict([sample["weak_image"]])
    with torch.no_grad():
        (expected,) = teacher([{"image": sample["weak_image"], "height": 64, "width": 96}])
    assert labels.certain.image_size == (64, 96)
    assert len(labels.certain) > 0
    found = {tuple(box) for box in labels.certain.pred_boxes.tensor.tolist()}
    assert found <= {tuple(box) for box in expected["instances"].pred_boxes.tensor.tolist()}


class ByFirstPixel(nn.Module):
    """A teacher whose boxes depend on the image alone."""

    def forward(self, batch):
        return [{"instances": detections()[: int(sample["image"][0, 0, 0]) % 3]} for sample in batch]


def student_and_teacher(*, burn_in):
    """A model and its optimizer, and the step in which the teacher looks at images from an iteration on."""
    torch.manual_seed(0)
    cfg = tiny_cfg("DETR", *DEFORMABLE, f"{GROUP}.BURN_IN_ITERS", burn_in, f"{GROUP}.RAMP_ITERS", 2)
    cfg.merge_from_list([f"{GROUP}.CLASS_QUANTILE", 0.5])
    model = distribute(build_model(cfg))
    step = MeanTeacherStep(cfg, teacher=ByFirstPixel())
    return model, step, torch.optim.SGD(model.parameters(), lr=0.01)


def train(steps=3):
    """Train on global batches of two labeled and four unlabeled images; gives losses and weights."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    model, step, optimizer = student_and_teacher(burn_in=1)
    total = 0.0
    for iteration in range(steps):
        torch.manual_seed(iteration)
        labeled = [random_sample() for _ in range(2)]
        unlabeled = [unlabeled_sample() for _ in range(4)]
        batch = labeled[rank::world_size] + (unlabeled[rank::world_size] if iteration else [])
        losses, _ = step(model, batch, iteration)
        optimizer.zero_grad()
        loss = sum(losses.values())
        loss.backward()
        optimizer.step()
        total += sum(comm.all_gather(loss.item())) / world_size
    return total, torch.cat([p.detach().flatten() for p in model.parameters()]), step.state_dict()


def test_two_processes_train_as_one_does():
    total, weights, _ = train()
    one, other = run_processes(2, train)
    assert one[0] == pytest.approx(total, rel=1e-5)
    assert torch.equal(one[1], other[1])
    assert one[2] == other[2]  # the thresholds of all processes are the same
    torch.testing.assert_close(one[1], weights, atol=1e-5, rtol=0)


def meet_a_bad_batch():
    """The strong view of one process has a pixel that is no number; says what each process sees of it."""
    torch.manual_seed(0)
    cfg = tiny_cfg("DETR", f"{GROUP}.BURN_IN_ITERS", 0)
    model = distribute(build_model(cfg))
    step = MeanTeacherStep(cfg, teacher=ByFirstPixel())
    sample = unlabeled_sample()
    sample["weak_image"][0, 0, 0] = 2  # two boxes
    if comm.get_rank() == 1:
        sample["image"] = sample["image"].float().fill_(float("nan"))
    try:
        step(model, [random_sample(), sample], 5)
        error = ""
    except FloatingPointError as problem:
        error = str(problem)
    return comm.all_gather(error)


def test_a_process_with_a_bad_batch_keeps_step_with_the_others():
    (good, bad), other = run_processes(2, meet_a_bad_batch)
    assert (good, bad) == tuple(other)
    assert good == ""
    assert "not finite" in bad


class BothKinds:
    """Four labeled and eight unlabeled images a step of all processes, with very different numbers of boxes."""

    seed = 2

    def __iter__(self):
        rank, world_size = comm.get_rank(), comm.get_world_size()
        step = 0
        while True:
            torch.manual_seed(step)
            labeled = [random_sample(64, 96, num_targets=(0, 7, 1, 2)[i]) for i in range(4)]
            unlabeled = [unlabeled_sample() for _ in range(8)]
            yield labeled[rank::world_size] + unlabeled[rank::world_size]
            step += 1


def train_in_parts(num_parts):
    """Three steps by the training loop; gives the weights, the logged numbers and the teacher's thresholds."""
    model, step, optimizer = student_and_teacher(burn_in=0)
    loop = TrainLoop(
        model, BothKinds(), optimizer, compute_losses=step, num_parts=num_parts, max_grad_norm=1.0
    )
    logged = {}
    with EventStorage() as storage:
        for loop.iter in range(3):
            loop.run_step()
            loop.settle()
            assert all("instances" in sample for sample in step.last_samples)
            for name, (value, _) in storage.latest().items():
                # Metrics of parts are averaged, which is something else for shares of the boxes.
                if name.startswith(("loss", "pseudo", "total")):
                    logged[loop.iter, name] = value
    return torch.cat([p.detach().flatten() for p in model.parameters()]), logged, step.state_dict()


def test_parts_of_a_batch_make_the_update_of_the_whole():
    weights, logged, thresholds = train_in_parts(1)
    parts, parts_logged, parts_thresholds = train_in_parts(2)
    assert (parts - weights).norm() <= 1e-6 * weights.norm()
    assert parts_logged == pytest.approx(logged, rel=1e-4, abs=1e-5)
    assert any("pseudo_boxes" in name and value for (_, name), value in logged.items())
    assert parts_thresholds == thresholds


def test_parts_of_two_processes_make_the_update_of_the_whole():
    weights, _, thresholds = train_in_parts(1)
    for parts, _, parts_thresholds in run_processes(2, train_in_parts, 2):
        assert (parts - weights).norm() <= 1e-6 * weights.norm()
        assert sorted(map(str, parts_thresholds)) == sorted(map(str, thresholds))

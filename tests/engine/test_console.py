"""The line on the console: what a person wants to know, and Detectron2's full lines in the log file alone."""

import io
import logging
import sys

import pytest
from detectron2.utils import logger as d2_logger
from detectron2.utils.events import CommonMetricPrinter, EventStorage
from helpers import tiny_cfg

from updetr_d2.engine.console import ConsolePrinter, main_result
from updetr_d2.engine.writers import images_per_step


def storage_of(iteration, **scalars):
    storage = EventStorage(0)
    storage.iter = iteration
    for name, value in scalars.items():
        storage.put_scalar(name, value)
    return storage


def test_the_line_says_what_a_person_wants_to_know():
    printer = ConsolePrinter(300, images_per_step=8)
    storage = storage_of(
        139,
        total_loss=10.5712,
        loss_ce=1.0,
        lr=9.6e-4,
        time=2.0,
        eta_seconds=3725.4,
        **{"val/bbox/AP": 67.74},
    )
    assert printer.line(storage) == (
        "iteration 140 of 300, loss 10.57, bbox/AP 67.7, lr 0.00096, 4 images/s, 1:02:05 left"
    )
    assert printer.line(storage_of(0)) == "iteration 1 of 300"


def test_the_chosen_result_goes_before_others():
    storage = storage_of(9, **{"bbox/AP": 10.0, "bbox/AP50": 20.0})
    assert "bbox/AP50 20.0" in ConsolePrinter(10, images_per_step=1, metric="bbox/AP50").line(storage)
    assert "bbox/AP 10.0" in ConsolePrinter(10, images_per_step=1, metric="ema/bbox/AP").line(storage)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["total_loss"], ""),
        (["query_patch/AP50", "query_patch/AP"], "query_patch/AP"),
        (["panoptic_seg/PQ", "val/bbox/AP"], "val/bbox/AP"),
        (["oneshot/seen_AP50", "oneshot/unseen_AP50"], "oneshot/unseen_AP50"),
    ],
)
def test_the_main_result_of_every_task(names, expected):
    assert main_result(dict.fromkeys(names, 1.0)) == expected


def test_images_without_labels_count():
    assert images_per_step(tiny_cfg("DETR", "SOLVER.IMS_PER_BATCH", 4)) == 4
    unlabeled = ("DATASETS.UNLABELED", ("folder:x",), "SOLVER.MEAN_TEACHER.UNLABELED_RATIO", 3)
    assert images_per_step(tiny_cfg("DETR", "SOLVER.IMS_PER_BATCH", 4, *unlabeled)) == 16


def test_losses_one_by_one_are_in_the_file_alone(tmp_path, monkeypatch):
    console = io.StringIO()
    monkeypatch.setattr(sys, "stdout", console)
    loggers = [logging.getLogger(name) for name in ("detectron2", "updetr_d2")]
    kept = [(each, each.handlers[:]) for each in loggers]
    try:
        for each in loggers:
            each.handlers.clear()
            d2_logger.setup_logger.__wrapped__(str(tmp_path), name=each.name, color=False)
        printers = [CommonMetricPrinter(300), ConsolePrinter(300, images_per_step=8)]
        with storage_of(19, total_loss=3.0, loss_ce=1.25, time=2.0):
            for printer in (*printers, *printers):
                printer.write()
        logging.getLogger("detectron2.other").info("Something else.")
    finally:
        for each, handlers in kept:
            each.handlers[:] = handlers
    file = (tmp_path / "log.txt").read_text()
    assert "loss_ce: 1.25" in file
    assert "loss_ce" not in console.getvalue() and "Something else." in console.getvalue()
    assert console.getvalue().count("iteration 20 of 300, loss 3") == 2


def test_nothing_is_said_once_the_training_is_over(caplog):
    with caplog.at_level(logging.INFO), storage_of(300, total_loss=3.0):
        ConsolePrinter(300, images_per_step=8).write()
    assert not caplog.records

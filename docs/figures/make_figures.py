#!/usr/bin/env python
"""Draw every picture of the README and docs/ anew, from the quickstart's models. `make figures` runs it.

    quickstart.png      patches that the pre-trained model finds, and what each detector finds, in a test picture
    how_it_works.png    one step of pre-training on a photo, panel by panel, with a model that has learned from
                        configs/quickstart/updetr_lite0_scenes.yaml (left as it is where there is none)
    learning_curves_500.png  of the transfer benchmark, from docs/measurements/transfer.json
    attention.png       where the transfer benchmark's pre-trained model looks for each patch of a held-out scene
                        (left as it is where the benchmark has not run)
    demo_app.png        the demo page in a browser (left as it is where Gradio, Playwright or Chromium is missing)

The same models give the same pictures (of the demo page, but for some pixels). The photo is scikit-image's cat
"Chelsea" (CC0, Stefan van der Walt).
"""

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.logger import setup_logger
from PIL import Image
from torch import nn

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.inference.predictor import Predictor, load_trained_model, setup_inference_config
from updetr_d2.modeling.box_ops import cxcywh_to_xyxy
from updetr_d2.modeling.matcher import FORBIDDEN, HungarianMatcher
from updetr_d2.modeling.meta_arch import UPDETR
from updetr_d2.tasks import build_mapper
from updetr_d2.visualization.attention import decoder_attention, draw_attention_maps
from updetr_d2.visualization.boxes import save_picture, to_rgb

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "figures")]  # neither is part of the package

from benchmarks.few_label.transfer import draw_curves  # noqa: E402
from benchmarks.quickstart import patches, report  # noqa: E402
from benchmarks.quickstart.coins import photo_folder  # noqa: E402
from benchmarks.quickstart.places import Places  # noqa: E402
from method import draw_method  # noqa: E402

QUICKSTART = ROOT / "output" / "quickstart"
SCENES = ROOT / "output" / "scenes"
IMAGES = ROOT / "docs" / "images"
TRANSFER = ROOT / "output" / "cutouts" / "pretrain_updetr"
TRANSFER_RESULTS = ROOT / "docs" / "measurements" / "transfer.json"
PHOTO_SIDE = 640  # px of the long side of the photo that is drawn
SEED = 0  # of the patches that are cut from the photo
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
ATTENTION_COLUMNS = 6
PAGE_WIDTH, PAGE_HEIGHT = 1280, 900
DEMO_EXAMPLE = 4  # the fifth example of the demo page
DEMO_GUESSES = 3


def draw_quickstart(files: Places) -> np.ndarray:
    """The first test picture with the most coins: patches that are found, below it what each detector finds.

    Raises:
        ValueError: if the quickstart has not come to its end.
    """
    if not files.results.exists():
        raise ValueError(
            f"There is no {files.results}: run `make quickstart` first; the figures show its models."
        )
    picture = max(patches.read_pictures(files.labels("test")), key=lambda each: len(each.boxes))
    above = patches.draw(Predictor.from_run(files.pretraining), picture)
    detectors = {title: Predictor.from_run(run) for title, run in files.detectors().items()}
    below = report.draw(detectors, picture.image)
    size = below.shape[1], round(above.shape[0] * below.shape[1] / above.shape[1])
    return np.concatenate([np.asarray(Image.fromarray(above).resize(size, Image.Resampling.LANCZOS)), below])


def find_patches(model: nn.Module, sample: dict) -> tuple[Instances, torch.Tensor]:
    """The model's Instances on a sample, and the IoU of the best box of each patch with the true one."""
    found = model([sample])[0]["instances"].to("cpu")
    scale = sample["image"].shape[1] / sample["height"]
    boxes = found.pred_boxes[: len(sample["patches"])].clone()
    boxes.scale(scale, scale)
    return found, matched_pairwise_iou(boxes, sample["instances"].gt_boxes)


@torch.no_grad()
def draw_training_step(cfg: CfgNode, model: UPDETR, photo: str) -> np.ndarray:
    """One step of pre-training on a photo: patches as training augments them, the model's boxes, the matches."""
    np.random.seed(SEED)
    sample = build_mapper(cfg, is_train=True)({"file_name": photo})
    outputs = model.compute_outputs(model.preprocess_images([sample]), [sample])
    targets = model.prepare_targets([sample], outputs)
    matcher = HungarianMatcher(cfg)
    logits, boxes = outputs.logits[-1:], outputs.boxes[-1:]
    matches = matcher(logits, boxes, targets)
    cost = matcher.cost(logits, boxes, targets)[0, 0]
    query_mask = model.group_mask(model.num_queries)
    if query_mask is None:
        raise ValueError("The figure shows groups of queries: MODEL.UPDETR.NUM_PATCHES must be more than 1.")

    picture = Image.open(photo).convert("RGB")
    picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    size = np.array([*picture.size, *picture.size])
    return draw_method(
        np.asarray(picture),
        to_rgb(sample["patches"], cfg.INPUT.FORMAT),
        cxcywh_to_xyxy(targets.boxes[0]).cpu().numpy() * size,
        query_mask=query_mask.cpu().numpy(),
        predicted_boxes=cxcywh_to_xyxy(boxes[0, 0]).cpu().numpy() * size,
        cost=cost.masked_fill(cost >= FORBIDDEN, float("nan")).cpu().numpy(),
        matched_queries=matches.query.cpu().numpy(),
        matched_patches=matches.target.cpu().numpy(),
    )


@torch.no_grad()
def draw_attention(cfg: CfgNode, model: UPDETR) -> np.ndarray:
    """The first image of the test set once a patch: where the patch's queries look, and where it is from."""
    ensure_registered(cfg.DATASETS.TEST[:1])
    sample = build_mapper(cfg, is_train=False)(DatasetCatalog.get(cfg.DATASETS.TEST[0])[0])
    attention = decoder_attention(model, [sample])[0]
    _, ious = find_patches(model, sample)
    count, (height, width) = len(sample["patches"]), sample["image"].shape[1:]
    return draw_attention_maps(
        to_rgb(sample["image"], cfg.INPUT.FORMAT),
        attention.unflatten(0, (count, -1)).mean(dim=1),
        sample["instances"].gt_boxes.tensor.numpy(),
        [f"patch {i}: IoU {iou:.2f}" for i, iou in enumerate(ious.tolist(), start=1)],
        stride=(height / attention.shape[1], width / attention.shape[2]),
        columns=ATTENTION_COLUMNS,
    )


def why_no_browser() -> str | None:
    """What is missing for a picture of the demo page, None if nothing is."""
    missing = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
    missing += [] if any(map(shutil.which, BROWSERS)) else ["Chromium"]
    return ", ".join(missing) or None


def photograph_demo(quickstart: Path, path: Path) -> None:
    """Click through the demo page in a browser without a window, and write what it shows."""
    from playwright.sync_api import sync_playwright

    from demo import app as demo_app

    page, url = demo_app.serve(demo_app.load_models(demo_app.quickstart_models(quickstart), []))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=list(BROWSER_OPTIONS)
            )
            view = browser.new_page(viewport={"width": PAGE_WIDTH, "height": PAGE_HEIGHT})
            view.goto(url)
            view.locator("button.gallery-item:visible").nth(DEMO_EXAMPLE).click()
            view.locator(".box-rectangle").wait_for()
            view.get_by_label("guesses shown").last.fill(str(DEMO_GUESSES))
            view.get_by_role("button", name="Find the patch").click()
            view.locator(".result img").wait_for()
            view.wait_for_load_state("networkidle")
            view.wait_for_function(
                "[...document.images].every(image => image.complete && image.naturalWidth)"
            )
            view.evaluate("window.scrollTo(0, 0)")
            view.screenshot(path=path)
            browser.close()
    finally:
        page.close()


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quickstart", type=Path, default=QUICKSTART, help="its output (default: %(default)s)"
    )
    parser.add_argument(
        "--scenes",
        type=Path,
        default=SCENES,
        help="OUTPUT_DIR of configs/quickstart/updetr_lite0_scenes.yaml (default: %(default)s)",
    )
    parser.add_argument(
        "--transfer",
        type=Path,
        default=TRANSFER,
        help="pre-training of the transfer benchmark (default: %(default)s)",
    )
    parser.add_argument("--photo", help="image of how_it_works.png (default: scikit-image's cat)")
    parser.add_argument(
        "--output", type=Path, default=IMAGES, help="folder to write to (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="updetr_d2")
    try:
        photo = args.photo or str(photo_folder() / "chelsea.png")
        save_picture(draw_quickstart(Places(args.quickstart)), str(args.output / "quickstart.png"))
        draw_curves(json.loads(TRANSFER_RESULTS.read_text()), args.output)
        left = []
        if (args.scenes / "model_final.pth").exists():
            picture = draw_training_step(*load_pretrained(args.scenes), photo)
            save_picture(picture, str(args.output / "how_it_works.png"))
        else:
            left.append("how_it_works.png (there is no model of configs/quickstart/updetr_lite0_scenes.yaml)")
        if (args.transfer / "model_final.pth").exists():
            picture = draw_attention(*load_pretrained(args.transfer))
            save_picture(picture, str(args.output / "attention.png"))
        else:
            left.append("attention.png (python tools/transfer_benchmark.py has not run)")
        missing = why_no_browser()
        if missing is None:
            photograph_demo(args.quickstart, args.output / "demo_app.png")
        else:
            left.append(f"demo_app.png ({missing} is not installed: make setup-demo)")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote the pictures of {args.output}{', except ' if left else ''}{', '.join(left)}")
    return 0


def load_pretrained(folder: Path) -> tuple[CfgNode, UPDETR]:
    """Config and model of a finished pre-training.

    Raises:
        ValueError: if it is of another model.
    """
    config, weights = (folder / name for name in ("config.yaml", "model_final.pth"))
    cfg = setup_inference_config(str(config), ["MODEL.WEIGHTS", str(weights)])
    model = load_trained_model(cfg)
    if not isinstance(model, UPDETR):
        raise ValueError(f"{config} is of a {type(model).__name__}; the figures show a UPDETR.")
    return cfg, model


if __name__ == "__main__":
    sys.exit(main())

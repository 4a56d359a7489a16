"""A page to try trained models in the browser: draw a box and see where a pre-trained model finds it.

    python tools/demo_app.py                       the models of `make quickstart`; `make demo` does the same
    python tools/demo_app.py --patches output/pretrain/config.yaml output/pretrain/model_final.pth \\
        --detection output/finetune/config.yaml output/finetune/model_final.pth MODEL.DEVICE cuda

Every model gets a tab. KEY VALUE pairs at the end override all of the configs. The page needs no network, sends
nothing anywhere, and is served to this computer alone unless --host says otherwise. It needs Gradio:
pip install -e '.[demo]'.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Gradio and what it brings along read these when they are imported.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")

try:
    import gradio as gr
except ImportError as error:
    sys.exit(f"The demo page needs Gradio ({error}): pip install -e '.[demo]', or use `make demo`.")
from detectron2.utils.logger import setup_logger

from demo import answers
from demo.access import access_rules
from demo.answers import DemoModel

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "output" / "quickstart"
# Tab -> run of the quickstart, the first that fits.
QUICKSTART_RUNS = {
    "patches": "compare/pretraining/*",
    "detection": "compare/runs/few_label_lite0-pretrained-100pct-*",
}
# Examples: pictures that no model has seen.
QUICKSTART_EXAMPLES = "data/test"
NUM_EXAMPLES = 6
MAX_UPLOAD = "20mb"
CSS = """
.picture img {object-fit: contain; width: 100%; height: 100%}
.box-picture {position: relative; touch-action: none}
.box-picture img {cursor: crosshair; user-select: none}
.box-rectangle {position: absolute; pointer-events: none; border: 2px dashed #fff; outline: 2px solid #e11d48;
                background: rgba(225, 29, 72, .12)}
.box-number {min-width: 60px !important}
.findings td, .findings th {white-space: nowrap; padding: 4px 12px !important}
"""


def uploaded_file(self: gr.Image, payload: Any) -> str | None:
    return None if payload is None else payload.path


# Gradio would open pictures itself, and tell visitors the name of a temporary file if one is damaged. Functions
# get the file as it was uploaded instead. A subclass would make Gradio write a .pyi file beside this one.
gr.Image.preprocess = uploaded_file


def in_page(answer: Callable) -> Callable:
    """``answer`` with its complaints shown in the page."""

    @functools.wraps(answer)
    def answer_or_complain(*inputs):
        try:
            return answer(*inputs)
        except answers.VisitorError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer_or_complain


def picture_input(label: str, *css_classes: str) -> gr.Image:
    return gr.Image(
        label=label,
        sources=["upload", "clipboard"],
        height=380,
        buttons=[],
        elem_classes=["picture", *css_classes],
    )


def query_inputs(model: DemoModel, label: str) -> list:
    """A picture to draw a box on and the four fields that hold the box; shows the patch that they cut out."""
    with gr.Column(elem_classes="draw-box"):
        picture = picture_input(label, "box-picture")
        with gr.Row(equal_height=True):
            box = [
                gr.Number(label=name, precision=0, minimum=0, min_width=60, elem_classes="box-number")
                for name in ("x0", "y0", "x1", "y1")
            ]
            patch = gr.Image(label="the patch", interactive=False, height=110, min_width=110, buttons=[])
    gr.on(
        [picture.change, *(number.change for number in box)],
        functools.partial(answers.preview_query, model),
        inputs=[picture, *box],
        outputs=patch,
        trigger_mode="always_last",
        show_progress="hidden",
    )
    # A box belongs to the picture that it was drawn on. In the browser, so that no later box is cleared.
    gr.on([picture.upload, picture.clear], None, outputs=box, js="() => [null, null, null, null]")
    return [picture, *box]


def result_column() -> list:
    """Where the answer appears: a picture and a table."""
    with gr.Column():
        picture = gr.Image(
            label="what the model finds",
            interactive=False,
            height=480,
            format="png",
            elem_classes=["picture", "result"],
            buttons=["download", "fullscreen"],
        )
        return [picture, gr.Markdown(elem_classes="findings")]


def threshold_slider(model: DemoModel) -> gr.Slider:
    value = 0.3 if model.cfg.MODEL.CRITERION.CLASS_LOSS == "focal" else 0.5  # focal loss gives low scores
    return gr.Slider(0.0, 1.0, value=value, step=0.01, label="lowest score shown")


def patches_tab(model: DemoModel) -> None:
    gr.Markdown(
        "Draw a box on a picture. Pre-training has taught the model to find where such a **patch** was cut "
        "from; it knows no classes. Each guess comes from one of the object queries that are given the patch; "
        "IoU says how well it overlaps your box (dashed), 1 being perfect. A low score says that the patch is not "
        "in the picture, as when you look for it in another one."
    )
    with gr.Row():
        with gr.Column():
            query = query_inputs(model, "picture: draw a box on it")
            with gr.Accordion("Look for the patch in another picture", open=False):
                other = picture_input("other picture")
            guesses = gr.Slider(1, model.group_size, value=1, step=1, label="guesses shown")
            button = gr.Button("Find the patch", variant="primary")
        result = result_column()
    locate = in_page(functools.partial(answers.locate_patch, model))
    button.click(locate, inputs=[*query, other, guesses], outputs=result)
    picture, *box = query
    gr.Examples(
        examples(model),
        inputs=[picture],
        fn=in_page(model.example_box),
        outputs=box,
        run_on_click=True,
        cache_examples=False,
    )


def classes_tab(model: DemoModel, *, kind: str, introduction: str) -> None:
    gr.Markdown(introduction)
    with gr.Row():
        with gr.Column():
            picture, threshold = picture_input("picture"), threshold_slider(model)
            button = gr.Button("Find objects", variant="primary")
        result = result_column()
    detect = in_page(functools.partial(answers.detect, model, kind))
    button.click(detect, inputs=[picture, threshold], outputs=result)
    gr.Examples(examples(model), inputs=[picture])


def one_shot_tab(model: DemoModel) -> None:
    gr.Markdown("Show one thing, and the model looks for all things of its class in another picture.")
    with gr.Row():
        with gr.Column():
            query = query_inputs(model, "query: draw a box around the thing, or take the whole picture")
            picture, threshold = picture_input("picture to search"), threshold_slider(model)
            button = gr.Button("Find things like it", variant="primary")
        result = result_column()
    find = in_page(functools.partial(answers.find_similar, model))
    button.click(find, inputs=[*query, picture, threshold], outputs=result)
    gr.Examples(examples(model), inputs=[query[0]], label="Examples for the query")
    gr.Examples(examples(model), inputs=[picture], label="Examples to search")


def examples(model: DemoModel) -> list[list[str]]:
    return [[name] for name in model.example_files(NUM_EXAMPLES)]


TABS: dict[str, tuple[str, Callable[..., object]]] = {
    "patches": ("Find a patch", patches_tab),
    "detection": (
        "Detection",
        functools.partial(classes_tab, kind="pictures", introduction="Objects of the classes it was taught."),
    ),
    "panoptic": (
        "Panoptic",
        functools.partial(
            classes_tab,
            kind="panoptic",
            introduction="Every pixel gets a thing or stuff class, if it is part of a segment with the score that "
            "MODEL.MASK_HEAD.SCORE_THRESHOLD asks for; the score below is that of the table.",
        ),
    ),
    "one_shot": ("One-shot", one_shot_tab),
}


def build_page(models: dict[str, DemoModel]) -> gr.Blocks:
    """The page, with a tab for each model; keys are those of ``TABS``."""
    with gr.Blocks(title="updetr_d2", analytics_enabled=False) as page:
        gr.Markdown("# updetr_d2\nDetection transformers that learnt to see by looking for patches.")
        with gr.Tabs():
            for tab, model in models.items():
                title, build = TABS[tab]
                with gr.Tab(title):
                    build(model)
    return page


def quickstart_models(folder: Path) -> dict[str, list[str]]:
    """Config, weights and options of the quickstart's models that are in its output folder.

    Raises:
        ValueError: if there are none.
    """
    test = folder / QUICKSTART_EXAMPLES
    options = ["DATASETS.TEST", f"('coco:{test / 'instances.json'}@{test / 'images'}',)"]
    models = {}
    for tab, runs in QUICKSTART_RUNS.items():
        for run in sorted(folder.glob(runs)):
            files = (run / "config.yaml", run / "model_final.pth")
            if tab not in models and all(file.exists() for file in files):
                models[tab] = [*map(str, files), *options]
    if not models:
        raise ValueError(
            "There is no trained model in output/quickstart yet: run `make quickstart` first (it takes minutes), "
            "or name models of your own with --patches CONFIG WEIGHTS, --detection CONFIG WEIGHTS, ..."
        )
    return models


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for tab in TABS:
        kinds = " or ".join(answers.architectures_of(tab))
        parser.add_argument(
            f"--{tab.replace('_', '-')}", nargs=2, metavar=("CONFIG", "WEIGHTS"), help=f"a {kinds}"
        )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port to serve on (default: the first free one from 7860)")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="address under which visitors reach the page besides, such as https://demo.example.org of a proxy",
    )
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="config values for all models")
    return parser


def serve(
    models: dict[str, DemoModel],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    origins: Sequence[str] = (),
) -> tuple:
    """Build the page and serve it in the background; uploads end at ``MAX_UPLOAD``.

    Args:
        models: of the tabs.
        host, port: to serve on; None is the first free port.
        origins: addresses under which visitors reach the page besides.

    Returns:
        the page (``gr.Blocks``) and its address.
    """
    page = build_page(models)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        app_kwargs={"middleware": access_rules(host, origins)},
        theme=gr.themes.Default(
            primary_hue="rose", font=["system-ui", "sans-serif"], font_mono=["monospace"]
        ),
        css=CSS,
        head=f"<script>{Path(__file__).with_name('draw_box.js').read_text(encoding='utf-8')}</script>",
    )
    return page, url


def load_models(wanted: dict[str, list[str]], options: list[str]) -> dict[str, DemoModel]:
    """The models of tabs, from config, weights and options; ``options`` are KEY VALUE pairs for all of them."""
    return {
        tab: DemoModel.load(config_file, [*own, *options, "MODEL.WEIGHTS", weights], tab=tab)
        for tab, (config_file, weights, *own) in wanted.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line: serve until interrupted; returns the exit status."""
    args = get_parser().parse_intermixed_args(argv)
    setup_logger(name="updetr_d2")
    try:
        wanted = {tab: getattr(args, tab) for tab in TABS if getattr(args, tab)} or quickstart_models(
            QUICKSTART
        )
        page, url = serve(
            load_models(wanted, args.options), host=args.host, port=args.port, origins=args.allow_origin
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The page is at {url}; Ctrl-C stops it.", flush=True)
    page.block_thread()
    return 0

"""The demo page in a real browser: upload, draw, press, look; mistakes are said; nothing leaves the machine."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import PANOPTIC_RESNET18, TOOLS, save_tiny_model
from PIL import Image

from demo.answers import DemoModel, detect, find_similar, locate_patch

pytest.importorskip("gradio", reason="the demo page needs Gradio: make setup-demo")
app = pytest.importorskip("demo.app")  # ends the process where Gradio is missing
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make setup-demo")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
pytestmark = pytest.mark.slow

BROWSER_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
OPTIONS = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.QUERY_PATCH.SIZE", 64)
# Tab -> model, and the options that it needs.
MODELS = {
    "--patches": ("UPDETR", ()),
    "--detection": ("DETR", ()),
    "--panoptic": (
        "PanopticDETR",
        (*PANOPTIC_RESNET18, "MODEL.MASK_HEAD.SCORE_THRESHOLD", 0.0),
    ),
    "--one-shot": ("OneShotDETR", ("MODEL.DETR.NUM_CLASSES", 1)),
}
TABS = {"UPDETR": "patches", "DETR": "detection", "PanopticDETR": "panoptic", "OneShotDETR": "one_shot"}
START_SECONDS = 180  # a busy machine imports PyTorch slowly
ANSWER_MS = 60_000

# The tool in a process that tells of every address outside of this machine that it asks for.
RUN_TOOL = """
import runpy, socket, sys
ask = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0", None):
        print("OUTSIDE", host, flush=True)
        raise OSError("there is no network")
    return ask(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
import helpers  # the backbone of the tiny models
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_tool(*arguments: str) -> subprocess.Popen:
    paths = [str(TOOLS.parent), str(TOOLS.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", RUN_TOOL, str(TOOLS / "demo_app.py"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory) -> Path:
    """Models with their configs; a photo of 96x64 px, an example and a damaged file."""
    folder = tmp_path_factory.mktemp("demo_app")
    (folder / "examples").mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "examples" / "example.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    for kind, options in MODELS.values():
        (folder / kind).mkdir()
        examples = ("DATASETS.TEST", (f"folder:{folder / 'examples'}",)) if kind == "UPDETR" else ()
        save_tiny_model(folder / kind, kind, *OPTIONS, *options, *examples)
    return folder


@pytest.fixture(name="server", scope="module")
def _server(files):
    """The running tool: the address of the page, and the lines that it has printed so far."""
    arguments = []
    for option, (kind, _) in MODELS.items():
        arguments += [option, str(files / kind / "config.yaml"), str(files / kind / "model.pth")]
    process = start_tool(*arguments)
    lines, address, ready = [], [], threading.Event()

    def read():
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r"The page is at (http\S+);", line):
                address.append(match[1])
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(START_SECONDS) and address, "".join(lines)
        yield address[0], lines
    finally:
        process.kill()
        process.wait()


@pytest.fixture(name="requests", scope="module")
def _requests() -> list[str]:
    """Addresses that the page has asked for."""
    return []


@pytest.fixture(name="browser", scope="module")
def _browser(tmp_path_factory, requests):
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=BROWSER,
            headless=True,
            args=BROWSER_OPTIONS,
            viewport={"width": 1280, "height": 1000},
        )
        context.on("request", lambda request: requests.append(request.url))
        yield context
        context.close()


@pytest.fixture(name="page")
def _page(browser, server):
    page = browser.new_page()
    page.set_default_timeout(ANSWER_MS)
    page.goto(server[0])
    page.get_by_role("button", name="Find the patch").wait_for()
    yield page
    page.close()


def open_tab(page, name: str):
    """Open a tab; returns what is in it."""
    page.get_by_role("tab", name=name).click()
    panel = page.locator("[role=tabpanel]:visible")
    panel.get_by_role("button", name="Find").wait_for()
    return panel


def upload(part, file: Path, picture: str = ".box-picture") -> None:
    part.locator(f"{picture} input[type=file]").set_input_files(file)
    part.locator(f"{picture} img").wait_for(state="attached")


def fill_box(part, *corners: int) -> None:
    for field, value in zip(part.locator(".box-number input").all(), corners):
        field.fill(str(value))
        field.blur()


def box_of(page) -> list[int]:
    return [int(field.input_value()) for field in page.locator(".box-number input").all()]


def table_of(page) -> list[list[str]]:
    """The rows of the table that the page shows."""
    rows = page.locator(".findings:visible tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def rows_of(table: str) -> list[list[str]]:
    """The same of a table in Markdown."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def loaded(files: Path, kind: str) -> DemoModel:
    weights = ["MODEL.WEIGHTS", str(files / kind / "model.pth")]
    return DemoModel.load(str(files / kind / "config.yaml"), weights, tab=TABS[kind])


def picture_of(page, css_class: str) -> np.ndarray:
    """The pixels of the picture that the page shows."""
    image = page.locator(f".{css_class} img:visible")
    image.wait_for()
    with contextlib.closing(io.BytesIO(page.request.get(image.get_attribute("src")).body())) as content:
        return np.asarray(Image.open(content).convert("RGB"))


@needs_browser
def test_a_patch_is_found_and_shown(page, files):
    upload(page, files / "photo.png")
    fill_box(page, 10, 20, 50, 60)
    page.get_by_role("button", name="Find the patch").click()
    picture = picture_of(page, "result")

    expected, table = locate_patch(loaded(files, "UPDETR"), str(files / "photo.png"), 10, 20, 50, 60, None, 1)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 1
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert table_of(page) == rows_of(table)


@needs_browser
def test_a_box_is_drawn_with_the_mouse(page, files):
    """Also from its lower right to its upper left corner; the patch is shown at once."""
    upload(page, files / "photo.png")
    image = page.locator(".box-picture img")
    page.wait_for_function("document.querySelector('.box-picture img').naturalWidth == 96")
    area = image.bounding_box()
    scale = min(area["width"] / 96, area["height"] / 64)
    left = area["x"] + (area["width"] - 96 * scale) / 2
    top = area["y"] + (area["height"] - 64 * scale) / 2
    for start, end in (((12, 8), (60, 50)), ((90, 62), (30, 20))):
        page.mouse.move(left + start[0] * scale, top + start[1] * scale)
        page.mouse.down()
        page.mouse.move(left + end[0] * scale, top + end[1] * scale, steps=5)
        page.mouse.up()
        expected = [*np.minimum(start, end), *np.maximum(start, end)]
        np.testing.assert_allclose(box_of(page), expected, atol=1)
        drawn = page.locator(".box-rectangle").bounding_box()
        assert abs(drawn["width"] - (expected[2] - expected[0]) * scale) < 2 * scale
        assert abs(drawn["x"] - (left + expected[0] * scale)) < 2 * scale
    patch = page.locator("[aria-label='the patch'] img, .draw-box .image-frame img").last
    patch.wait_for()

    upload(page, files / "examples/example.png")  # the box belongs to the picture that it was drawn on
    page.wait_for_function("[...document.querySelectorAll('.box-number input')].every(x => x.value === '')")


@needs_browser
def test_an_example_brings_its_box(page):
    page.locator("button.gallery-item:visible").first.click()
    page.wait_for_function("Number(document.querySelectorAll('.box-number input')[2].value) > 0")
    x0, y0, x1, y1 = box_of(page)
    assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 64
    page.get_by_role("button", name="Find the patch").click()
    assert picture_of(page, "result").std() > 10


@needs_browser
@pytest.mark.parametrize(
    ("file", "box", "message"),
    [
        (None, None, "There is no picture yet"),
        ("photo.png", None, "There is no box yet"),
        ("photo.png", (10, 10, 13, 14), "The box has 3x4 px, which is too small"),
        ("broken.jpg", (10, 20, 50, 60), "The picture cannot be used: broken.jpg"),
    ],
)
def test_mistakes_are_answered_in_the_page(page, files, file, box, message):
    if file:
        upload(page, files / file)
    if box:
        fill_box(page, *box)
    page.get_by_role("button", name="Find the patch").click()
    toast = page.locator(".toast-body")
    toast.wait_for()
    assert message in toast.inner_text()
    assert page.locator(".result img:visible").count() == 0


@needs_browser
@pytest.mark.parametrize(
    ("tab", "kind", "drawn"), [("Detection", "DETR", "pictures"), ("Panoptic", "PanopticDETR", "panoptic")]
)
def test_objects_of_classes_are_found(page, files, tab, kind, drawn):
    panel = open_tab(page, tab)
    upload(panel, files / "photo.png", ".picture:not(.result)")
    panel.get_by_label("lowest score shown").last.fill("0")
    panel.get_by_role("button", name="Find objects").click()
    picture = picture_of(page, "result")
    model = loaded(files, kind)
    expected, table = detect(model, drawn, str(files / "photo.png"), 0.0)
    assert min(picture.shape[:2]) >= 640
    assert picture.shape == expected.shape  # Detectron2 draws in colours of its own choice
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert table_of(page) == rows_of(table)
    assert rows_of(table)


@needs_browser
def test_a_thing_of_one_picture_is_looked_for_in_another(page, files):
    panel = open_tab(page, "One-shot")
    upload(panel, files / "photo.png")
    upload(panel, files / "examples/example.png", ".picture:not(.box-picture):not(.result)")
    fill_box(panel, 10, 20, 50, 60)
    panel.get_by_label("lowest score shown").last.fill("0")
    panel.get_by_role("button", name="Find things like it").click()
    picture = picture_of(page, "result")
    query, searched = str(files / "photo.png"), str(files / "examples/example.png")
    expected, table = find_similar(loaded(files, "OneShotDETR"), query, 10, 20, 50, 60, searched, 0.0)
    assert picture.shape == expected.shape
    assert table_of(page) == rows_of(table)


@needs_browser
def test_every_model_has_a_tab(page):
    assert page.get_by_role("tab").all_inner_texts() == ["Find a patch", "Detection", "Panoptic", "One-shot"]


@needs_browser
def test_nothing_leaves_the_machine(page, server, requests):
    """Neither the page, all of which has been loaded by now, nor the process behind it asks for another host."""
    address, lines = server
    assert any(url.startswith(address) for url in requests)
    assert {url for url in requests if not url.startswith((address, "data:", "blob:", "about:"))} == set()
    assert [line for line in lines if line.startswith("OUTSIDE")] == []
    assert address.startswith("http://127.0.0.1:")


def test_mistakes_on_the_command_line_are_answered_in_a_sentence(files, monkeypatch, capsys):
    tool = app
    monkeypatch.setattr(tool, "setup_logger", lambda **_: None)
    monkeypatch.setattr(tool, "QUICKSTART", files / "nowhere")
    model = [str(files / "DETR/config.yaml"), str(files / "DETR/model.pth")]
    for arguments, message in (
        ([], "run `make quickstart` first"),
        (["--patches", *model], "is DETR; here it must be UPDETR"),
        (["--detection", model[0], str(files / "none.pth")], "none.pth"),
    ):
        assert tool.main(arguments) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error


def test_the_quickstarts_models_are_the_default(files, monkeypatch):
    tool = app
    monkeypatch.setattr(tool, "QUICKSTART_RUNS", {"patches": "UPDETR*", "detection": "DETR*"})
    (files / "UPDETR/model_final.pth").touch()
    ((tab, (config, weights, *options)),) = tool.quickstart_models(files).items()
    assert tab == "patches" and config == str(files / "UPDETR/config.yaml")
    assert weights == str(files / "UPDETR/model_final.pth")
    # Examples are held-out pictures with labels.
    test = files / "data/test"
    assert options == ["DATASETS.TEST", f"('coco:{test}/instances.json@{test}/images',)"]

"""The page answers its own pages and takes uploads of a stated size; other sites and larger files are refused."""

import numpy as np
import pytest
from PIL import Image

from demo.answers import READ_OPTIONS, VisitorError, read_picture

pytest.importorskip("gradio", reason="the demo page needs Gradio: make setup-demo")
httpx = pytest.importorskip("httpx")

app = pytest.importorskip("demo.app")  # ends the process where Gradio is missing


@pytest.fixture(name="address", scope="module")
def _address():
    page, url = app.serve({}, origins=["https://demo.example.org"])
    yield url.rstrip("/")
    page.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "https://demo.example.org"}, 200),
        ({"Origin": "https://demo.example.org", "Host": "demo.example.org"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        # A name of somebody else's that leads to this computer (DNS rebinding).
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
        ({"Host": "evil.example"}, 400),
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_other_sites_are_refused(address, headers, status, path):
    headers = {name: value.format(own=address) for name, value in headers.items()}
    assert httpx.get(address + path, headers=headers).status_code == status


def test_uploads_have_a_limit(address):
    small, large = (
        httpx.post(f"{address}/gradio_api/upload", files={"files": bytes(n)}) for n in (9, 21_000_000)
    )
    assert small.status_code == 200
    assert large.status_code == 413


def test_pages_for_other_machines_have_any_name_but_one_origin():
    rules = app.access_rules("0.0.0.0", [])
    assert [rule.cls.__name__ for rule in rules] == ["SameOrigin"]


def test_pictures_have_a_limit_of_pixels(tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((5000, 8001), np.uint8)).save(path)
    with pytest.raises(VisitorError, match=f"8001x5000 px, more than .*{READ_OPTIONS.max_pixels}"):
        read_picture(str(path))

"""Public weights by name: from a server, whole or the rest of them, checked, converted, once."""

import hashlib
import http.server
import threading
from functools import partial
from urllib.parse import urlsplit

import pytest
import torch
import torchvision
from helpers import tiny_model
from range_server import RangeServer

from updetr_d2.checkpoint import zoo
from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.conversions import SOURCES, convert
from updetr_d2.checkpoint.safe_loading import CheckpointError
from updetr_d2.cli import fetch
from updetr_d2.cli.command import main


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server with a ResNet-18, "r18" in the zoo in blocks of 4 MB; returns its bytes."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "_BLOCK_SIZE", 4_000_000)
    monkeypatch.setattr(zoo, "_WAITS", (0.0, 0.0))
    for name, value in (("requests", []), ("failures", 0), ("ranges", True)):
        monkeypatch.setattr(RangeServer, name, value)
    folder = tmp_path / "served"
    folder.mkdir()
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in torchvision.models.resnet18().state_dict().items()}
    torch.save(state, folder / "r18.pth")
    content = (folder / "r18.pth").read_bytes()
    handler = partial(RangeServer, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/r18.pth"
        digest = hashlib.sha256(content).hexdigest()[:8]
        monkeypatch.setitem(zoo.ZOO, "r18", zoo.PublicFile("ResNet-18", "torchvision", url, sha256=digest))
        yield content
        running.shutdown()


def publish(monkeypatch, **changes):
    public = zoo.ZOO["r18"]
    kept = {"what": public.what, "source": public.source, "url": public.url, "sha256": public.sha256}
    monkeypatch.setitem(zoo.ZOO, "r18", zoo.PublicFile(**{**kept, **changes}))


def starts():
    return [int(requested.removeprefix("bytes=").split("-")[0]) for _, requested in RangeServer.requests]


def test_weights_are_downloaded_converted_and_kept(served, tmp_path):
    path = zoo.fetch("zoo:r18")
    (tmp_path / "copy.pth").write_bytes(served)
    wanted, _ = convert(torch.load(tmp_path / "copy.pth", weights_only=True), source="torchvision")
    found = torch.load(path, weights_only=True)
    assert found["model"].keys() == wanted["model"].keys()
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in wanted["model"].items())
    assert {each.name for each in path.parent.iterdir()} == {"r18.pth", "r18.pth.lock"}, "no download is left"
    count = len(RangeServer.requests)
    assert zoo.fetch("r18") == path
    assert len(RangeServer.requests) == count


def test_an_interrupted_download_goes_on_where_it_was(served, monkeypatch):
    read_range = zoo.read_range

    def break_in_the_middle(url, start, size):
        if start >= 8_000_000:
            raise OSError("the line is cut")
        return read_range(url, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "read_range", break_in_the_middle)
        with pytest.raises(OSError, match="the line is cut"):
            zoo.fetch("r18")
    assert starts() == [0, 4_000_000]
    assert zoo.fetch("r18").exists()
    assert starts()[2] == 8_000_000


def test_a_server_that_fails_for_a_while_is_asked_again(served):
    RangeServer.failures = 2
    assert zoo.fetch("r18").exists()
    assert starts()[:4] == [0, 0, 0, 4_000_000]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_another_file_than_the_published_one_is_refused_and_not_kept(served, monkeypatch, algorithm):
    publish(monkeypatch, **{"sha256": "", algorithm: "00000000"})
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"its {algorithm} begins with .* published is 00000000"):
            zoo.fetch("r18")
    assert starts().count(0) == 2
    publish(monkeypatch, sha256="", md5=hashlib.md5(served).hexdigest()[:8])
    assert zoo.fetch("r18").exists()


def test_without_a_published_digest_the_log_says_so(served, monkeypatch, caplog):
    zoo.fetch("r18")
    assert "no digest" not in caplog.text
    zoo.fetch("r18").unlink()
    publish(monkeypatch, sha256="")
    zoo.fetch("r18")
    assert "publish no digest" in caplog.text


def test_weights_of_another_model_are_refused(served, monkeypatch):
    publish(monkeypatch, source="detr")
    with pytest.raises(CheckpointError, match="not a detr checkpoint"):
        zoo.fetch("r18")


def test_what_browsers_alone_get_is_handed_over_once(served, monkeypatch, tmp_path):
    publish(monkeypatch, by_hand=True)
    with pytest.raises(CheckpointError, match="updetr fetch r18 --file"):
        zoo.fetch("r18")
    downloaded = tmp_path / "downloaded"
    downloaded.write_bytes(served)
    path = zoo.fetch("r18", file=downloaded)
    assert downloaded.exists() and zoo.fetch("r18") == path
    assert not RangeServer.requests


def test_model_weights_take_names(served):
    model = tiny_model("DETR")
    with pytest.raises(
        CheckpointError, match=r"MODEL\.WEIGHTS 'zoo:r19': There are no weights 'r19'.*swav_r50_800ep"
    ):
        UPDETRCheckpointer(model).load("zoo:r19")
    model.backbone = torch.nn.Module()
    model.backbone.stem = torch.nn.Module()
    model.backbone.stem.conv1 = torch.nn.Conv2d(3, 64, 7, bias=False)
    UPDETRCheckpointer(model).resume_or_load("zoo:r18", resume=False)
    torch.manual_seed(0)
    published = torchvision.models.resnet18().conv1.weight.half().float()
    assert torch.equal(model.backbone.stem.conv1.weight, published)


def test_the_command(served, tmp_path, capsys):
    assert main(["fetch", "r18", "--output", str(tmp_path / "new" / "r18.pth")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new" / "r18.pth")
    assert "model" in torch.load(tmp_path / "new" / "r18.pth", weights_only=True)
    assert fetch.main(["no_such"]) == 1
    assert "no weights 'no_such'" in capsys.readouterr().err
    assert fetch.main([]) == 0
    assert "swav_r50_800ep" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_the_table(name):
    public = zoo.ZOO[name]
    assert public.source in SOURCES
    assert urlsplit(public.url).scheme == "https"
    assert all(len(each) in (0, 8, 32, 64) for each in (public.sha256, public.md5))


def test_torchvision_s_files_are_those_that_it_names():
    weights = {"r18": "ResNet18", "r34": "ResNet34", "r50": "ResNet50", "r101": "ResNet101"}
    for name, model in weights.items():
        known = getattr(torchvision.models, f"{model}_Weights")
        assert zoo.ZOO[f"torchvision_{name}"].url == known.IMAGENET1K_V1.url
        if f"torchvision_{name}_v2" in zoo.ZOO:
            assert zoo.ZOO[f"torchvision_{name}_v2"].url == known.IMAGENET1K_V2.url

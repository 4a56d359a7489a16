"""Shards on a web server and in an object store: read by range, tried again, as if they were files."""

import http.server
import io
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image
from range_server import RangeServer

from updetr_d2.data.datasets.remote_files import read_range, remote_status
from updetr_d2.data.datasets.shard_index import write_index_beside
from updetr_d2.data.datasets.shards import load_shards
from updetr_d2.data.loading.retry import RetryPolicy
from updetr_d2.data.loading.samples import SkippedFile, try_to_map
from updetr_d2.data.transforms.image_io import read_image_rgb


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Two shards of three images each, on the disk; the cache of indices is empty."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for number in range(3):
                content = io.BytesIO()
                pixels = np.full((8, 8, 3), 40 * shard + 10 * number, np.uint8)
                Image.fromarray(pixels).save(content, "PNG")
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(content.getvalue())
                content.seek(0)
                tar.addfile(member, content)
    return folder


@pytest.fixture
def server(shards, monkeypatch):
    monkeypatch.setattr(RangeServer, "requests", [])
    monkeypatch.setattr(RangeServer, "failures", 0)
    monkeypatch.setattr(RangeServer, "ranges", True)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeServer, directory=shards)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def pixels(dicts):
    return [int(read_image_rgb(each["file_name"])[0, 0, 0]) for each in dicts]


def assert_all_images(url):
    pytest.importorskip("webdataset")
    dicts = load_shards(f"{url}/{{0000..0001}}.tar")
    assert dicts.block_sizes == [3, 3]
    assert [each["image_id"] for each in dicts][3:] == [
        "0001.tar::0.png",
        "0001.tar::1.png",
        "0001.tar::2.png",
    ]
    order = [5, 0, 3, 1, 4, 2]
    assert pixels(dicts[i] for i in order) == [40 * (i // 3) + 10 * (i % 3) for i in order]


def test_images_of_shards_on_a_web_server(server):
    assert_all_images(server)
    image_requests = RangeServer.requests[-6:]
    assert all(requested for _, requested in image_requests)  # no shard is fetched as a whole for an image
    first, last = map(int, image_requests[0][1].removeprefix("bytes=").split("-"))
    assert last - first < 2000


def test_images_of_shards_in_a_store(shards):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for file in shards.iterdir():
        store.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    try:
        assert_all_images("memory://bucket")
    finally:
        store.rm("/bucket", recursive=True)


def test_the_index_beside_a_shard_saves_reading_it(server, shards):
    for shard in shards.glob("*.tar"):
        write_index_beside(str(shard))
    load_shards(f"{server}/0000.tar")
    assert [path for path, _ in RangeServer.requests if path.endswith(".npz")] == ["/0000.tar.index.npz"]
    tar_bytes = [requested for path, requested in RangeServer.requests if path.endswith(".tar")]
    assert len(tar_bytes) == 1  # the last image, to see whether the index fits


def test_a_server_that_fails_for_a_moment_is_asked_again(server):
    (image, *_) = load_shards(f"{server}/0000.tar")
    RangeServer.failures = 2
    result = try_to_map(
        lambda each: {"image": read_image_rgb(each["file_name"])},
        image,
        seed=(0,),
        retry=RetryPolicy(3, 0.01),
    )
    assert result["image"].shape == (8, 8, 3)
    RangeServer.failures = 9
    result = try_to_map(
        lambda each: {"image": read_image_rgb(each["file_name"])},
        image,
        seed=(0,),
        retry=RetryPolicy(1, 0.01),
    )
    assert (
        isinstance(result, SkippedFile)
        and "answers 503" in result.reason
        and "tried 2 times" in result.reason
    )


def test_what_is_wrong_is_one_sentence(server):
    with pytest.raises(ValueError, match=r"9999\.tar in DATASETS cannot be read \(the server answers 404"):
        load_shards(f"{server}/9999.tar")
    RangeServer.ranges = False
    with pytest.raises(OSError, match="the server gives no parts of files"):
        read_range(f"{server}/0000.tar", 0, 10)
    with pytest.raises(OSError, match="does not answer"):
        remote_status("http://127.0.0.1:9/0000.tar")

"""Checkpoint files of others are read without running code from them; what is wrong is said in a sentence."""

import argparse
import collections
import os
import pickle

import numpy as np
import pytest
import torch

from updetr_d2.checkpoint.safe_loading import CheckpointError, load_state_file


class RunsCode:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_training_checkpoint_with_namespace_is_read(tmp_path, zipped):
    weights = collections.OrderedDict(a=torch.randn(3, 2), b=torch.arange(4), c=torch.randn(2).half())
    checkpoint = {
        "model": weights,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 59,
        "args": argparse.Namespace(lr=1e-4, masks=False, backbone="resnet50", device=None),
    }
    path = tmp_path / "official.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    loaded = load_state_file(path)
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in weights.items())
    assert loaded["args"] == checkpoint["args"]


def test_the_allow_list_of_the_process_is_left_as_it_was(tmp_path):
    torch.save({"args": argparse.Namespace()}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    load_state_file(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_in_a_torch_file_is_not_run(tmp_path, zipped):
    path, trace = tmp_path / "evil.pth", tmp_path / "was_here"
    torch.save(
        {"model": {"a": torch.zeros(1)}, "x": RunsCode(trace)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match=r"evil\.pth was not loaded: it holds posix\.mkdir"):
        load_state_file(path)
    assert not trace.exists()


def test_code_in_a_pickle_is_not_run(tmp_path):
    path, trace = tmp_path / "evil.pkl", tmp_path / "was_here"
    path.write_bytes(pickle.dumps({"model": RunsCode(trace)}))
    with pytest.raises(CheckpointError, match=r"it holds posix\.mkdir"):
        load_state_file(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_model_zoo_pickles_become_tensors(tmp_path, protocol):
    weights = {"stem.conv1.weight": np.random.rand(2, 3).astype("float32"), "step": np.arange(3)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps({"model": weights, "__author__": "x", "matching_heuristics": True}, protocol=protocol)
    )
    loaded = load_state_file(path)
    assert loaded["__author__"] == "x"
    for name, array in weights.items():
        assert torch.equal(loaded["model"][name], torch.from_numpy(array))


@pytest.mark.parametrize("module", ["numpy.core.numeric", "numpy._core.numeric"])
def test_arrays_of_objects_are_not_made_of_bytes(tmp_path, module):
    """NumPy 1 and 2 name the function of protocol 5 in different modules; it must make no addresses of bytes."""
    call = f"c{module}\n_frombuffer\n".encode() + b"(B\x10\0\0\0" + bytes(16)
    path = tmp_path / "evil.pkl"
    for dtype, sound in (("f8", True), ("O", False)):
        dumped = pickle.dumps(np.dtype(dtype), protocol=4)[2:-1]  # without its header and its end
        path.write_bytes(b"\x80\x04}X\x01\0\0\0a" + call + dumped + b"K\x02\x85X\x01\0\0\0CtRs.")
        if sound:
            assert torch.equal(load_state_file(path)["a"], torch.zeros(2, dtype=torch.float64))
        else:
            with pytest.raises(CheckpointError):
                load_state_file(path)


def test_safetensors_files_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {"a": torch.randn(2, 2)}
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(load_state_file(tmp_path / "model.safetensors")["a"], weights["a"])


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>"], ids=["empty", "web page"])
def test_files_that_are_no_checkpoints_are_named(tmp_path, name, content):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} was not loaded: it is damaged"):
        load_state_file(tmp_path / name)


def test_truncated_file_and_other_contents_are_reported(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_file(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_state_file(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_state_file(tmp_path / "nowhere.pth")

"""Only errors of the file system that may pass are worth another try, after delays that double."""

import errno

import pytest
from PIL import Image

from updetr_d2.data.loading.retry import RetryPolicy, may_pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENOMEM])
def test_errors_of_networks_and_devices_may_pass(number):
    assert may_pass(OSError(number, "x"))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        IsADirectoryError(errno.EISDIR, "x"),
        OSError("image file is truncated"),  # Pillow's, about the content
        Image.UnidentifiedImageError("x"),
        ValueError("x"),
        None,
    ],
)
def test_the_others_last(error):
    assert not may_pass(error)


def test_delays_double():
    assert RetryPolicy(4, 0.5).delays() == [0.5, 1, 2, 4]
    assert RetryPolicy(0, 0.5).delays() == []

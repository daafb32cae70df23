"""Paths longer than a system call takes are reached through directories that are kept open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.overlay import layer as under_test
from snapfs.overlay.layer import Layer

NAME = b"n" * 250
WAYS = 20
"""Directories at the end of long paths."""
KEPT = 8


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layer]:
    monkeypatch.setattr(under_test, "_STEPS_KEPT", KEPT)
    made = Layer(tmp_path, os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    yield made
    made.close()


def make(layer: Layer, way: int) -> bytes:
    """Make a file at the end of a long path of its own, and return that."""
    path = b"w%d" % way
    os.mkdir(path, dir_fd=layer.fd)
    for _ in range(17):
        path += b"/" + NAME
        fd, rest = layer.at(path)
        os.mkdir(rest, dir_fd=fd)
    path += b"/file"
    fd, rest = layer.at(path)
    file = os.open(rest, os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(file, b"%d" % way)
    os.close(file)
    return path


def read(layer: Layer, path: bytes) -> bytes:
    fd, rest = layer.at(path)
    with open(os.open(rest, os.O_RDONLY, dir_fd=fd), "rb") as file:
        return file.read()


def test_each_of_many_long_paths_leads_to_its_file(layer: Layer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    paths = [make(layer, way) for way in range(WAYS)]
    for _ in range(2):
        assert [read(layer, path) for path in paths] == [b"%d" % way for way in range(WAYS)]
    assert len(os.listdir("/proc/self/fd")) <= before + KEPT
    layer.forget_steps()
    assert len(os.listdir("/proc/self/fd")) == before


def test_directory_that_is_used_all_the_time_stays_open(layer: Layer) -> None:
    paths = [make(layer, way) for way in range(WAYS)]
    kept, _ = layer.at(paths[0])
    for path in paths[1:]:
        layer.at(path)
        assert layer.at(paths[0])[0] == kept

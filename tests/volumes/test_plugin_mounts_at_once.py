"""A mount that takes long holds up engines that mount the same volume, and no other."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from snapfs.service.volume_plugin import VolumePlugin

DEADLINE_S = 30


class Volumes:
    """Volumes of which one is slow to mount."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.mounted: set[str] = set()

    def describe(self, _name: str) -> Any:
        return SimpleNamespace(mounted_at="")

    def mount(self, name: str) -> str:
        if name == "slow":
            self.begun.set()
            assert self.go_on.wait(DEADLINE_S)
        self.mounted.add(name)
        return f"/mnt/{name}"

    def umount(self, name: str) -> None:
        self.mounted.remove(name)


def test_a_slow_mount_holds_up_no_other_volume() -> None:
    volumes = Volumes()
    calls = VolumePlugin(volumes).calls()  # type: ignore[arg-type]
    mount, unmount = calls["/VolumeDriver.Mount"], calls["/VolumeDriver.Unmount"]
    slow = threading.Thread(target=mount, args=({"Name": "slow", "ID": "1"},), daemon=True)
    slow.start()
    assert volumes.begun.wait(DEADLINE_S)
    try:
        assert mount({"Name": "quick", "ID": "2"}) == {"Mountpoint": "/mnt/quick"}
        assert unmount({"Name": "quick", "ID": "2"}) == {}
        assert volumes.mounted == set()
    finally:
        volumes.go_on.set()
    slow.join(DEADLINE_S)
    assert volumes.mounted == {"slow"}
    mount({"Name": "slow", "ID": "3"})
    unmount({"Name": "slow", "ID": "1"})
    assert volumes.mounted
    unmount({"Name": "slow", "ID": "3"})
    assert volumes.mounted == set()

"""The service as containerd calls it: every refusal's status, times, labels, filters, batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapfs_containerd import snapshots_pb2 as pb
from snapfs_containerd.snapshots_pb2_grpc import SnapshotsStub

from snapfs.snapshots import Snapshotter

TIMEOUT_S = 30


class Caller:
    """The calls, with containerd's argument order and a deadline."""

    def __init__(self, service: SnapshotsStub) -> None:
        self.service = service

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[Any]:
        request = pb.PrepareSnapshotRequest(
            snapshotter="snapfs", key=key, parent=parent, labels=labels
        )
        return list(self.service.Prepare(request, timeout=TIMEOUT_S).mounts)

    def view(self, key: str, parent: str = "", **labels: str) -> list[Any]:
        request = pb.ViewSnapshotRequest(
            snapshotter="snapfs", key=key, parent=parent, labels=labels
        )
        return list(self.service.View(request, timeout=TIMEOUT_S).mounts)

    def mounts(self, key: str) -> list[Any]:
        request = pb.MountsRequest(snapshotter="snapfs", key=key)
        return list(self.service.Mounts(request, timeout=TIMEOUT_S).mounts)

    def commit(self, name: str, key: str, parent: str = "", **labels: str) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter="snapfs", name=name, key=key, parent=parent, labels=labels
        )
        self.service.Commit(request, timeout=TIMEOUT_S)

    def remove(self, key: str) -> None:
        request = pb.RemoveSnapshotRequest(snapshotter="snapfs", key=key)
        self.service.Remove(request, timeout=TIMEOUT_S)

    def stat(self, key: str) -> pb.Info:
        request = pb.StatSnapshotRequest(snapshotter="snapfs", key=key)
        return self.service.Stat(request, timeout=TIMEOUT_S).info

    def update(self, info: pb.Info, *paths: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(
            snapshotter="snapfs", info=info, update_mask=FieldMask(paths=paths)
        )
        return self.service.Update(request, timeout=TIMEOUT_S).info

    def batches(self, *filters: str) -> list[list[pb.Info]]:
        request = pb.ListSnapshotsRequest(snapshotter="snapfs", filters=filters)
        return [list(it.info) for it in self.service.List(request, timeout=TIMEOUT_S)]

    def names(self, *filters: str) -> set[str]:
        return {info.name for batch in self.batches(*filters) for info in batch}

    def usage(self, key: str) -> tuple[int, int]:
        request = pb.UsageRequest(snapshotter="snapfs", key=key)
        answer = self.service.Usage(request, timeout=TIMEOUT_S)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self.service.Cleanup(pb.CleanupRequest(snapshotter="snapfs"), timeout=TIMEOUT_S)


@pytest.fixture
def call(service: SnapshotsStub) -> Caller:
    return Caller(service)


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode[code], caught.value.details()
    for word in words:
        assert word in caught.value.details()


@pytest.fixture
def base(call: Caller) -> str:
    """A committed snapshot."""
    call.prepare("base-key")
    call.commit("base", "base-key")
    return "base"


# Names of snapshotters


@pytest.mark.parametrize("name", ["", "overlayfs", "snapfsx", "SNAPFS", "snapfs/1", "snapfs-"])
@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("Prepare", pb.PrepareSnapshotRequest),
        ("View", pb.ViewSnapshotRequest),
        ("Mounts", pb.MountsRequest),
        ("Commit", pb.CommitSnapshotRequest),
        ("Remove", pb.RemoveSnapshotRequest),
        ("Stat", pb.StatSnapshotRequest),
        ("Update", pb.UpdateSnapshotRequest),
        ("Usage", pb.UsageRequest),
        ("Cleanup", pb.CleanupRequest),
    ],
)
def test_another_snapshotters_name_is_refused_by_every_call(
    name: str, method: str, request_type: Callable[..., Any], service: SnapshotsStub
) -> None:
    with refused("INVALID_ARGUMENT", repr(name), "proxy_plugins"):
        getattr(service, method)(request_type(snapshotter=name), timeout=TIMEOUT_S)


def test_another_snapshotters_name_is_refused_by_list(service: SnapshotsStub) -> None:
    with refused("INVALID_ARGUMENT", "'zfs'"):
        list(service.List(pb.ListSnapshotsRequest(snapshotter="zfs"), timeout=TIMEOUT_S))


def test_several_daemons_have_stanzas_with_a_suffix(service: SnapshotsStub) -> None:
    service.Cleanup(pb.CleanupRequest(snapshotter="snapfs-second_1"), timeout=TIMEOUT_S)


# Prepare, View, Mounts


def test_prepare_answers_with_a_writable_bind_mount(call: Caller, tmp_path: Path) -> None:
    (mount,) = call.prepare("k")
    assert (mount.type, mount.source) == ("bind", str(tmp_path / "mnt" / "1"))
    assert list(mount.options) == ["rbind", "rw"]
    assert call.mounts("k") == [mount]


def test_a_view_is_a_read_only_bind_mount(call: Caller, base: str) -> None:
    (mount,) = call.view("v", base)
    assert (mount.type, list(mount.options)) == ("bind", ["rbind", "ro"])
    assert call.mounts("v") == [mount]


def test_unpacking_gets_an_overlay_mount(call: Caller, base: str) -> None:
    (mount,) = call.prepare("test/3/extract-123-abc sha256:0", base)
    assert mount.type == "overlay"
    assert {it.partition("=")[0] for it in mount.options} >= {"upperdir", "workdir", "lowerdir"}


def test_unpacking_a_first_layer_gets_an_overlay_mount_too(call: Caller) -> None:
    (mount,) = call.prepare("test/3/extract-123-abc sha256:0")
    assert mount.type == "overlay"
    assert any(it.startswith("upperdir=") for it in mount.options)


def test_a_missing_parent_is_named_before_a_taken_key(call: Caller) -> None:
    call.prepare("k")
    with refused("NOT_FOUND", "'p'"):
        call.prepare("k", "p")


def test_an_uncommitted_parent_is_a_bad_argument(call: Caller) -> None:
    call.prepare("p")
    with refused("INVALID_ARGUMENT", "'p'", "commit"):
        call.prepare("k", "p")
    with refused("INVALID_ARGUMENT", "'p'", "commit"):
        call.view("k", "p")


def test_a_key_of_any_kind_is_taken(call: Caller, base: str) -> None:
    call.prepare("active")
    call.view("view", base)
    for key in ("active", "view", base):
        with refused("ALREADY_EXISTS", repr(key)):
            call.prepare(key, base)
        with refused("ALREADY_EXISTS", repr(key)):
            call.view(key, base)


def test_mounts_refuses_what_is_missing_or_committed(call: Caller, base: str) -> None:
    with refused("NOT_FOUND", "'none'"):
        call.mounts("none")
    with refused("FAILED_PRECONDITION", "'base'"):
        call.mounts(base)


# Commit


def test_commit_replaces_labels_and_sets_both_times(call: Caller) -> None:
    call.prepare("k", **{"containerd.io/snapshot/old": "1"})
    before = call.stat("k").created_at.ToNanoseconds()
    call.commit("name", "k", **{"containerd.io/snapshot/new": "2"})
    info = call.stat("name")
    assert info.kind == pb.COMMITTED
    assert dict(info.labels) == {"containerd.io/snapshot/new": "2"}
    assert info.created_at == info.updated_at
    assert info.created_at.ToNanoseconds() > before
    with refused("NOT_FOUND", "'k'"):
        call.stat("k")


def test_commit_refuses_in_the_references_order(call: Caller, base: str) -> None:
    call.prepare("k")
    call.view("v", base)
    with refused("NOT_FOUND", "'none'"):
        call.commit(base, "none")
    with refused("ALREADY_EXISTS", "'base'"):
        call.commit(base, "k")
    with refused("FAILED_PRECONDITION", "'v'"):
        call.commit("fresh", "v")


def test_commit_can_give_a_parentless_snapshot_its_parent(call: Caller, base: str) -> None:
    call.prepare("k")
    call.commit("child", "k", parent=base)
    assert call.stat("child").parent == base


def test_commit_refuses_a_parent_that_does_not_fit(call: Caller, base: str) -> None:
    call.prepare("other-key")
    call.commit("other", "other-key")
    call.prepare("k", base)
    call.prepare("orphan")
    call.prepare("active")
    with refused("INVALID_ARGUMENT", "'other'"):
        call.commit("x", "k", parent="other")
    with refused("NOT_FOUND", "'none'"):
        call.commit("x", "orphan", parent="none")
    with refused("FAILED_PRECONDITION", "'active'"):
        call.commit("x", "orphan", parent="active")


# Remove, Cleanup


def test_remove_refuses_a_parent_and_says_what_to_remove(call: Caller, base: str) -> None:
    call.prepare("child", base)
    with refused("FAILED_PRECONDITION", "remove"):
        call.remove(base)
    call.remove("child")
    call.remove(base)
    with refused("NOT_FOUND", "'base'"):
        call.remove(base)


def test_what_others_made_is_neither_listed_nor_removed_whatever_its_name(
    call: Caller, snapshotter: Snapshotter
) -> None:
    for name in ("mine", "projects/2024/main", "default/7/key"):
        snapshotter.prepare(name)
        with refused("FAILED_PRECONDITION", "was not made by containerd"):
            call.remove(name)
    call.prepare("red/1/theirs")
    assert call.names() == {"red/1/theirs"}
    assert len(list(snapshotter.walk())) == 4


def test_cleanup_leaves_no_directory_behind(call: Caller, base: str, tmp_path: Path) -> None:
    call.remove(base)
    call.cleanup()
    assert list((tmp_path / "root" / "layers").iterdir()) == []


# Stat, Update, Usage


def test_times_have_nanoseconds(call: Caller) -> None:
    before = time.time_ns()
    call.prepare("k")
    created = call.stat("k").created_at.ToNanoseconds()
    assert before <= created <= time.time_ns()
    stamps = set()
    for number in range(5):
        call.prepare(f"k{number}")
        stamps.add(call.stat(f"k{number}").created_at.nanos % 1000)
    assert stamps != {0}


def test_update_without_a_mask_replaces_all_labels_and_nothing_else(
    call: Caller, base: str
) -> None:
    before = call.stat(base)
    changed = pb.Info(name=base, parent="ignored", kind=pb.VIEW, labels={"a": "1"})
    after = call.update(changed)
    assert (after.name, after.parent, after.kind) == (base, "", pb.COMMITTED)
    assert dict(after.labels) == {"a": "1"}
    assert after.created_at == before.created_at
    assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
    assert call.stat(base) == after


def test_update_with_a_mask_sets_and_deletes_single_labels(call: Caller) -> None:
    call.prepare("k", a="1", b="2", c="3")
    info = call.update(
        pb.Info(name="k", labels={"a.b/c": "4", "b": "", "ignored": "5"}),
        *("labels.a.b/c", "labels.b", "labels.c"),
    )
    assert dict(info.labels) == {"a": "1", "a.b/c": "4"}
    info = call.update(pb.Info(name="k", labels={"z": "1"}), "labels")
    assert dict(info.labels) == {"z": "1"}


@pytest.mark.parametrize("path", ["parent", "kind", "name", "created_at", "", "label.a"])
def test_update_refuses_other_paths(path: str, call: Caller) -> None:
    call.prepare("k", a="1")
    with refused("INVALID_ARGUMENT"):
        call.update(pb.Info(name="k"), path)
    assert dict(call.stat("k").labels) == {"a": "1"}


def test_update_and_stat_and_usage_of_nothing_are_not_found(call: Caller) -> None:
    with refused("NOT_FOUND", "'none'"):
        call.update(pb.Info(name="none"))
    with refused("NOT_FOUND", "'none'"):
        call.stat("none")
    with refused("NOT_FOUND", "'none'"):
        call.usage("none")


def test_usage_counts_what_a_snapshot_has_itself(
    call: Caller, snapshotter: Snapshotter, tmp_path: Path
) -> None:
    call.prepare("k")
    upper = tmp_path / "root" / "layers" / "1" / "fs"
    (upper / "file").write_bytes(b"x" * 5000)
    (upper / "link").hardlink_to(upper / "file")
    size, inodes = call.usage("k")
    assert (size >= 8192, inodes) == (True, 2)
    call.commit("name", "k")
    assert call.usage("name")[1] == 2
    call.view("v", "name")
    assert call.usage("v") == (0, 0)
    call.prepare("child", "name")
    assert call.usage("child")[1] == 1


# Labels and keys


def test_a_label_over_the_limit_is_refused(call: Caller) -> None:
    call.prepare("fits", k="v" * 4095)
    with refused("INVALID_ARGUMENT", "4097", "4096"):
        call.prepare("does not", k="v" * 4096)
    with refused("NOT_FOUND"):
        call.stat("does not")


def test_an_empty_key_is_refused(call: Caller) -> None:
    with refused("INVALID_ARGUMENT", "empty"):
        call.prepare("")


def test_a_key_too_long_is_refused(call: Caller) -> None:
    call.prepare("k" * 32768)
    with refused("INVALID_ARGUMENT", "32768"):
        call.prepare("k" * 32769)


def test_a_key_that_is_no_utf8_is_refused(address: Path) -> None:
    raw = b"\x0a\x06snapfs\x12\x02\xff\xfe"
    with grpc.insecure_channel(f"unix:{address}") as channel:
        prepare = channel.unary_unary("/containerd.services.snapshots.v1.Snapshots/Prepare")
        with refused("INVALID_ARGUMENT", "UTF-8"):
            prepare(raw, timeout=TIMEOUT_S)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
    | st.sampled_from(["..", "a/../../b", "\x00", "\n", " ", "a\x00b", "/", "%s", "k" * 1000])
)
def test_keys_of_any_text_come_back_as_they_went(call: Caller, key: str) -> None:
    call.prepare(key)
    try:
        assert call.stat(key).name == key
        assert key in call.names()
    finally:
        call.remove(key)


# List


def test_an_empty_store_lists_nothing(call: Caller) -> None:
    assert call.batches() == []


def test_list_filters_as_containerd_does(call: Caller, base: str) -> None:
    reference = "containerd.io/snapshot.ref"
    call.prepare("a", base, **{reference: "x"})
    call.view("v", base)
    assert call.names(f'labels."{reference}"==x,parent=="base"') == {"a"}
    assert call.names("kind==committed", "kind==view") == {base, "v"}
    assert call.names() == {base, "a", "v"}


@pytest.mark.parametrize("filter_", ["name==", 'labels."a', "kind==active,", "name~=/a"])
def test_a_bad_filter_is_refused(filter_: str, call: Caller) -> None:
    with refused("INVALID_ARGUMENT"):
        call.batches(filter_)


def test_list_comes_in_batches_and_calls_inside_it_answer(call: Caller) -> None:
    for number in range(230):
        call.prepare(f"{number:03d}")
    request = pb.ListSnapshotsRequest(snapshotter="snapfs")
    sizes, names = [], []
    for answer in call.service.List(request, timeout=TIMEOUT_S):
        sizes.append(len(answer.info))
        for info in answer.info[:3]:
            assert call.stat(info.name) == info
        call.prepare(f"new-{len(sizes)}")
        names += [info.name for info in answer.info]
    assert sizes[:2] == [100, 100]
    assert {f"{number:03d}" for number in range(230)} <= set(names)


# Many at once


def test_64_prepares_and_commits_at_once(call: Caller, base: str) -> None:
    errors: list[grpc.RpcError] = []

    def work(number: int) -> None:
        try:
            call.prepare(f"k{number}", base)
            call.commit(f"n{number}", f"k{number}")
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert call.names("kind==committed") == {base, *(f"n{number}" for number in range(64))}


def test_one_of_64_with_the_same_key_wins(call: Caller) -> None:
    outcomes: list[str] = []

    def work() -> None:
        try:
            call.prepare("k")
            outcomes.append("OK")
        except grpc.RpcError as error:
            outcomes.append(error.code().name)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["ALREADY_EXISTS"] * 63 + ["OK"]

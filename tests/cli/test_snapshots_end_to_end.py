"""`snapfs snapshot`, `mount`, `umount`, `status` and `fsck` against a real service."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from tests.support.daemon import SNAPFS, RunningDaemon, mounts_below

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def base(daemon: RunningDaemon, target: Path) -> str:
    """The name of a committed snapshot with a file, a directory and something to delete."""
    daemon.run("snapshot", "prepare", "base-key")
    daemon.run("mount", "base-key", target)
    (target / "kept").write_text("kept")
    (target / "gone").write_text("gone")
    (target / "dir").mkdir()
    (target / "dir" / "file").write_text("1")
    daemon.run("umount", target)
    daemon.run("snapshot", "commit", "base-key", "base")
    return "base"


def test_prepare_prints_a_mount_that_works(daemon: RunningDaemon, target: Path) -> None:
    line = daemon.run("snapshot", "prepare", "work").stdout.strip()
    assert line.endswith(" TARGET")
    subprocess.run(line.replace("TARGET", str(target)).split(), check=True)
    (target / "file").write_text("x")
    daemon.run("umount", target)
    assert str(target) not in mounts_below(daemon.base)


def test_json_of_prepare_is_what_containerd_would_get(daemon: RunningDaemon) -> None:
    (mount,) = daemon.json("snapshot", "prepare", "work")
    number = daemon.json("snapshot", "info", "work")["id"]
    assert mount["type"] == "bind"
    assert mount["source"] == str(daemon.lane / str(number))
    assert "rw" in mount["options"]


def test_a_committed_name_is_mounted_through_a_view_that_umount_removes(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    assert daemon.run("mount", base, target).stdout == f"mount:{target}\n"
    assert (target / "kept").read_text() == "kept"
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").write_text("x")
    view = daemon.json("snapshot", "info", f"mount:{target}")
    assert view["kind"] == "view"
    assert view["mounted_at"] == [str(target)]
    assert view["labels"] == {"snapfs.io/mounted-at": str(target)}
    daemon.run("umount", target)
    assert [it["name"] for it in daemon.json("snapshot", "list")] == [base]
    assert str(target) not in mounts_below(daemon.base)


def test_a_writable_mount_keeps_its_changes(daemon: RunningDaemon, base: str, target: Path) -> None:
    daemon.run("mount", base, target, "--writable", "--key", "work")
    (target / "new").write_text("x")
    told = daemon.run("umount", target)
    assert "work keeps the changes" in told.stderr
    work = daemon.json("snapshot", "info", "work")
    assert (work["kind"], work["labels"], work["mounted_at"]) == ("active", {}, [])
    daemon.run("mount", "work", target)
    assert (target / "new").read_text() == "x"
    daemon.run("umount", target)


def test_an_active_key_may_be_mounted_twice_and_both_see_the_same(
    daemon: RunningDaemon, target: Path
) -> None:
    other = target.with_name(f"{target.name}-other")
    other.mkdir()
    daemon.run("snapshot", "prepare", "work")
    daemon.run("mount", "work", target)
    daemon.run("mount", "work", other)
    (target / "file").write_text("x")
    assert (other / "file").read_text() == "x"
    assert sorted(daemon.json("snapshot", "info", "work")["mounted_at"]) == sorted(
        [str(target), str(other)]
    )
    daemon.run("umount", target)
    assert (other / "file").read_text() == "x"
    daemon.run("umount", other)


def test_a_view_left_by_an_unmount_behind_our_back_is_replaced(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    daemon.run("mount", base, target)
    subprocess.run(["umount", target], check=True)
    daemon.run("mount", base, target)
    assert (target / "kept").exists()
    subprocess.run(["umount", target], check=True)
    daemon.run("umount", target)
    assert [it["name"] for it in daemon.json("snapshot", "list")] == [base]


def test_a_busy_target_is_refused_and_may_be_detached(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    daemon.run("mount", base, target)
    with (target / "kept").open() as held:
        refused = daemon.run("umount", target, check=False)
        assert refused.exit_code == 1
        assert f"{target} is busy" in refused.stderr
        assert "--lazy" in refused.stderr
        daemon.run("umount", "--lazy", target)
        assert held.read() == "kept"


def test_a_dead_mount_at_the_target_is_named_with_the_way_out(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        mounts.mount("dead", target, "fuse.dead", 0, options)
    finally:
        os.close(device)
    refused = daemon.run("mount", base, target, check=False)
    assert refused.exit_code == 1
    assert f"target {target}: a dead mount is there; unmount it first" in refused.stderr
    subprocess.run(["umount", target], check=True)
    daemon.run("mount", base, target)
    daemon.run("umount", target)


def test_a_verification_says_what_it_did_not_check(daemon: RunningDaemon, base: str) -> None:
    checked = daemon.run("snapshot", "verify")
    assert checked.stdout == f"unsealed  {base}\n"
    assert checked.stderr.startswith("1 of 1 not checked: no digest; ")
    assert 'seals = "background"' in checked.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mount", "none", "TARGET"], "neither a snapshot nor an image is called 'none'"),
        (["mount", "base", "TARGET/none"], "create the directory first"),
        (["mount", "base", "/etc/hostname"], "is no directory"),
        (["mount", "look", "TARGET", "--writable"], "mount its parent 'base' with --writable"),
        (["umount", "TARGET"], "no snapshot is mounted at"),
        (["snapshot", "info", "none"], "'none' does not exist"),
        (["snapshot", "tree", "none"], "'none' does not exist"),
        (["snapshot", "usage", "none"], "'none' does not exist"),
        (["snapshot", "diff", "none"], "'none' does not exist"),
        (["snapshot", "label", "none", "a=b"], "'none' does not exist"),
        (["snapshot", "prepare", "x", "--parent", "none"], "'none'"),
        (["snapshot", "prepare", "base"], "'base'"),
        (["snapshot", "view", "x", "none"], "'none'"),
        (["snapshot", "commit", "none", "x"], "'none'"),
        (["snapshot", "remove", "base"], "'base'"),
        (["snapshot", "list", "--filter", "kind=="], "filter"),
    ],
)
def test_a_refusal_names_the_object_and_exits_1(
    daemon: RunningDaemon, base: str, target: Path, words: list[str], message: str
) -> None:
    daemon.run("snapshot", "view", "look", base)
    words = [word.replace("TARGET", str(target)) for word in words]
    refused = daemon.run(*words, check=False)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("snapfs: ")
    assert len(refused.stderr.splitlines()) == 1
    assert message in refused.stderr
    assert daemon.run("snapshot", "list").stdout.count("\n") == 3


def test_the_tree_shows_chains_sizes_and_mounts(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    daemon.run("mount", base, target, "--writable", "--key", "work")
    daemon.run("snapshot", "view", "look", base)
    lines = daemon.run("snapshot", "tree").stdout.splitlines()
    assert lines[0].startswith("base  committed, ")
    assert lines[1] == "├── look  view"
    assert lines[2].startswith("└── work  active, ")
    assert lines[2].endswith(f"  mounted at {target}")
    (tree,) = daemon.json("snapshot", "tree")
    assert [it["name"] for it in tree["children"]] == ["look", "work"]
    assert tree["usage"]["size_bytes"] > 0
    daemon.run("umount", target)


def test_diff_lists_added_changed_and_deleted_paths(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    daemon.run("mount", base, target, "--writable", "--key", "work")
    (target / "new\n\udcff").write_text("x")
    (target / "kept").write_text("changed")
    (target / "gone").unlink()
    lines = set(daemon.run("snapshot", "diff", "work").stdout.splitlines())
    assert {"A /new\\n\\xff", "C /kept", "D /gone"} <= {_rooted(line) for line in lines}
    changes = {
        it["kind"]: os.fsencode(it["path"]) for it in daemon.json("snapshot", "diff", "work")
    }
    assert changes["added"].endswith(b"new\n\xff")
    daemon.run("umount", target)


def _rooted(line: str) -> str:
    mark, _, path = line.partition(" ")
    return f"{mark} /{path.lstrip('/')}"


def test_usage_counts_a_snapshots_own_data(daemon: RunningDaemon, base: str, target: Path) -> None:
    daemon.run("mount", base, target, "--writable", "--key", "work")
    before = daemon.json("snapshot", "usage", "work")
    (target / "big").write_bytes(b"x" * 1_000_000)
    os.sync()
    after = daemon.json("snapshot", "usage", "work")
    assert after["inodes"] == before["inodes"] + 1
    assert after["size_bytes"] - before["size_bytes"] >= 1_000_000
    assert daemon.run("snapshot", "usage", "work").stdout.split()[:2] == ["SIZE", "INODES"]
    daemon.run("umount", target)


def test_quota_is_shown_set_and_kept(daemon: RunningDaemon, base: str, target: Path) -> None:
    daemon.run("mount", base, target, "--writable", "--key", "work")
    assert daemon.json("snapshot", "quota", "work")["size_bytes"] is None
    set_to = daemon.json("snapshot", "quota", "work", "--bytes", "4MiB", "--inodes", "50")
    assert (set_to["size_bytes"], set_to["inodes"]) == (4 << 20, 50)
    with pytest.raises(OSError, match="quota"):
        (target / "big").write_bytes(b"x" * (8 << 20))
    assert daemon.json("snapshot", "usage", "work")["size_bytes"] <= 4 << 20
    shown = daemon.run("snapshot", "quota", "work").stdout.split()
    assert shown[:3] == ["USED", "QUOTA", "bytes"]
    daemon.run("snapshot", "quota", "work", "--none", "--inodes", "70")
    now = daemon.json("snapshot", "quota", "work")
    assert (now["size_bytes"], now["inodes"]) == (None, 70)
    (target / "big").write_bytes(b"x" * (8 << 20))
    refused = daemon.run("snapshot", "quota", base, check=False)
    assert refused.exit_code == 1
    assert "only an active one has a quota" in refused.stderr
    assert daemon.run("snapshot", "quota", "work", "--bytes", "much", check=False).exit_code == 2
    daemon.run("umount", target)


def test_first_quota_says_which_open_files_it_does_not_bind(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    told = len(daemon.events("quota.passed_by_open_files"))
    daemon.run("mount", base, target, "--writable", "--key", "work")
    with (target / "log").open("wb", buffering=0) as log:
        said = daemon.run("snapshot", "quota", "work", "--bytes", "1MiB")
        assert "not bound by the quota until they are closed: /log; end" in said.stderr
        log.write(b"x" * (8 << 20))
        shown = daemon.json("snapshot", "quota", "work")
        assert shown["unbound"] == {"files": 1, "paths": ["/log"]}
    (target / "log").unlink()
    after = daemon.run("snapshot", "quota", "work")
    assert after.stderr == ""
    assert daemon.json("snapshot", "quota", "work")["unbound"] == {"files": 0, "paths": []}
    label = "containerd.io/snapshot/max-size"
    daemon.run("snapshot", "quota", "work", "--none")
    with (target / "log").open("wb", buffering=0):
        daemon.run("snapshot", "label", "work", f"{label}=1MiB")
    assert len(daemon.events("quota.passed_by_open_files")) == told + 2
    daemon.run("umount", target)


def test_labels_are_set_and_deleted(daemon: RunningDaemon, base: str) -> None:
    daemon.run("snapshot", "label", base, "owner=me", "note=a=b", "empty-key=x")
    daemon.run("snapshot", "label", base, "owner-", "note=c d")
    labels = {"note": "c d", "empty-key": "x"}
    assert daemon.json("snapshot", "info", base)["labels"] == labels
    shown = daemon.run("snapshot", "label", base, "x=y").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in shown[1:]] == [
        ["empty-key", "x"],
        ["note", "c d"],
        ["x", "y"],
    ]


def test_list_takes_filters_and_shows_a_table(daemon: RunningDaemon, base: str) -> None:
    daemon.run("snapshot", "prepare", "work", "--parent", base, "--label", "owner=me")
    found = daemon.json("snapshot", "list", "--filter", "labels.owner==me", "--filter", "name==x")
    assert [it["name"] for it in found] == ["work"]
    header, *rows = daemon.run("snapshot", "list").stdout.splitlines()
    assert header.split() == ["NAME", "KIND", "PARENT", "SIZE", "ID", "UPDATED"]
    assert [row.split()[:3] for row in rows] == [
        ["base", "committed", "-"],
        ["work", "active", "base"],
    ]
    assert all(row == row.rstrip() for row in rows)


def test_info_tells_everything(daemon: RunningDaemon, base: str) -> None:
    record = daemon.json("snapshot", "info", base)
    assert record["kind"] == "committed"
    assert record["layer"] == str(daemon.root / "layers" / str(record["id"]) / "fs")
    assert Path(record["layer"], "kept").read_text() == "kept"
    text = daemon.run("snapshot", "info", base).stdout
    assert f"layer    {record['layer']}" in text


def test_status_tells_of_the_daemon_and_its_lane(daemon: RunningDaemon, base: str) -> None:
    status = daemon.json("status")
    assert status["pid"] == daemon.pid
    assert status["snapshots"] == {"active": 0, "view": 0, "committed": 1}
    lane = status["lanes"][0]
    assert (lane["name"], lane["mode"], lane["state"]) == ("main", "passthrough", "serving")
    assert lane["mountpoint"] == str(daemon.lane)
    assert f"passthrough, serving, worker {lane['worker_pid']}" in daemon.run("status").stdout


def test_status_tells_which_requests_were_left_to_python(daemon: RunningDaemon, base: str) -> None:
    def count() -> tuple[int, int]:
        found = daemon.json("status")["lanes"][0]["requests"].get("UNLINK", {})
        return found.get("fast", 0), found.get("python", 0)

    (mount,) = daemon.json("snapshot", "prepare", "work", "--parent", base)
    tree = Path(mount["source"])
    (tree / "upper").write_text("upper")
    before = count()
    (tree / "kept").unlink()  # the first whiteout is Python's
    assert count() == (before[0], before[1] + 1)
    (tree / "upper").unlink()
    assert count() == (before[0] + 1, before[1] + 1)
    assert "in the fast lane, " in daemon.run("status").stdout


def test_remove_takes_several_in_order(daemon: RunningDaemon, base: str) -> None:
    daemon.run("snapshot", "prepare", "work", "--parent", base)
    daemon.run("snapshot", "remove", "work", base)
    assert daemon.json("snapshot", "list") == []


def test_what_is_mounted_is_removed_by_force_only(daemon: RunningDaemon, target: Path) -> None:
    daemon.run("snapshot", "prepare", "work")
    daemon.run("mount", "work", target)
    (target / "file").write_text("unsaved")
    refused = daemon.run("snapshot", "remove", "work", check=False)
    assert refused.exit_code == 1
    assert f"snapshot work is mounted at {target}; `snapfs umount` first" in refused.stderr
    assert (target / "file").read_text() == "unsaved"
    daemon.run("snapshot", "remove", "--force", "work")
    assert daemon.json("snapshot", "list") == []
    subprocess.run(["umount", target], check=True)


def test_completion_offers_names(daemon: RunningDaemon, base: str) -> None:
    done = subprocess.run(
        [str(Path(daemon.command()[0]))],
        env={
            **daemon.environ,
            "SNAPFS_ADDRESS": str(daemon.address),
            "_SNAPFS_COMPLETE": "bash_complete",
            "COMP_WORDS": "snapfs snapshot info ba",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout.split(",")[1].strip() == "base"


def test_fsck_asks_the_service_and_exits_1_for_what_it_finds(daemon: RunningDaemon) -> None:
    assert daemon.run("fsck").stdout.startswith("clean")
    stray = daemon.root / "layers" / "999999"
    stray.mkdir(parents=True)
    found = daemon.run("fsck", "--json", check=False)
    assert found.exit_code == 1
    (problem,) = json.loads(found.stdout)
    assert problem["kind"] == "unknown-directory"
    assert not problem["repaired"]
    shown = daemon.run("fsck", check=False)
    assert shown.stdout.splitlines()[0].split() == ["KIND", "OBJECT", "PROBLEM", "REPAIRED"]
    assert "snapfs fsck --repair" in shown.stderr
    stray.rmdir()
    assert daemon.run("fsck", "--root", daemon.root).exit_code == 0


def test_umount_leaves_alone_what_is_mounted_below_or_elsewhere(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    daemon.run("mount", base, target, "--key", "below")
    daemon.run("mount", base, target, "--key", "above")
    daemon.run("umount", target)
    assert [it["name"] for it in daemon.json("snapshot", "list")] == [base, "below"]
    assert (target / "kept").read_text() == "kept"
    daemon.run("umount", target)
    assert [it["name"] for it in daemon.json("snapshot", "list")] == [base]


def test_a_snapshot_without_its_layer_does_not_hide_the_others(
    daemon: RunningDaemon, base: str
) -> None:
    daemon.run("snapshot", "prepare", "broken")
    layer = Path(daemon.json("snapshot", "info", "broken")["layer"])
    layer.rename(layer.with_name("aside"))
    try:
        names = [it["name"] for it in daemon.json("snapshot", "tree")]
        info = daemon.json("snapshot", "info", "broken")
    finally:
        layer.with_name("aside").rename(layer)
    assert names == [base, "broken"]
    assert info["usage"] is None


def test_a_mount_over_a_lost_layer_names_the_snapshot_and_leaves_no_view(
    daemon: RunningDaemon, base: str, target: Path
) -> None:
    layer = Path(daemon.json("snapshot", "info", base)["layer"])
    layer.rename(layer.with_name("lost"))
    try:
        refused = daemon.run("mount", base, target, check=False)
    finally:
        layer.with_name("lost").rename(layer)
    assert refused.exit_code == 1
    assert "a layer of it may be missing; run `snapfs fsck`" in refused.stderr
    assert [it["name"] for it in daemon.json("snapshot", "list")] == [base]


@pytest.mark.parametrize("kind", ["snapshot", "image", "lease", "remote", "volume"])
def test_what_does_not_exist_is_said_with_the_list_of_what_does(
    daemon: RunningDaemon, kind: str
) -> None:
    verb = "info" if kind in {"snapshot", "image", "volume"} else "remove"
    refused = daemon.run(kind, verb, "nothing", check=False)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"snapfs: {kind} 'nothing' does not exist")
    assert f"`snapfs {kind} list`" in refused.stderr or "there are: " in refused.stderr


def on_a_terminal(daemon: RunningDaemon, *arguments: str) -> str:
    """Return what the command prints where standard output is a terminal."""
    command = shlex.join([str(SNAPFS), *arguments])
    environ = {**daemon.environ, "SNAPFS_ADDRESS": str(daemon.address), "COLUMNS": "600"}
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_a_long_key_is_short_on_a_terminal_and_whole_for_programs(daemon: RunningDaemon) -> None:
    keys = [f"first-{'x' * 5000}-{end}" for end in ("one", "two")]
    for key in keys:
        daemon.run("snapshot", "prepare", key)
    for command in (("snapshot", "list"), ("snapshot", "tree")):
        piped, shown = daemon.run(*command).stdout, on_a_terminal(daemon, *command)
        for key in keys:
            assert key in piped
            assert key in [it["name"] for it in daemon.json(*command)]
            assert key not in shown
            assert key[:20] in shown
            assert key[-20:] in shown

"""Volumes as an operator uses them: one service, real mounts, real users of them."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.overlay import stamps
from tests.support.daemon import RunningDaemon, eventually, running

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("volumes")) as daemon:
        yield daemon


@pytest.fixture
def db(service: RunningDaemon) -> Iterator[Path]:
    """A volume `db`, mounted; all volumes go at the end."""
    service.run("volume", "create", "db", "--mount")
    yield service.state / "volumes" / "db"
    for volume in service.json("volume", "list"):
        service.run("volume", "umount", volume["name"])
        if volume["name"] != "db":
            service.run("volume", "remove", "--discard", volume["name"])
    service.run("volume", "remove", "--history", "db")
    assert [it["name"] for it in service.json("snapshot", "list")] == []
    assert service.mounts_beside_lanes() == []


def take(service: RunningDaemon, message: str, *more: str) -> str:
    made = service.json("volume", "snapshot", "db", "-m", message, *more)
    return str(made["id"])


def messages(service: RunningDaemon, *more: str) -> list[str]:
    return [it["message"] for it in service.json("volume", "log", "db", *more)]


def test_open_files_go_on_through_a_snapshot_that_keeps_what_was(
    service: RunningDaemon, db: Path
) -> None:
    (db / "kept").write_text("kept")
    with (db / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        inode = os.fstat(file.fileno()).st_ino
        first = take(service, "one")
        file.write(b" after")
        assert os.fstat(file.fileno()).st_ino == inode == (db / "file").stat().st_ino
    assert (db / "file").read_text() == "before after"
    service.run("volume", "reset", "--hard", "db", first)
    assert (db / "file").read_text() == "before"
    assert (db / "kept").read_text() == "kept"


def test_what_a_shared_mapping_has_written_is_in_the_snapshot(
    service: RunningDaemon, db: Path
) -> None:
    (db / "mapped").write_bytes(b"\0" * 8192)
    with (db / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[5000:5005] = b"first"
        take(service, "mapped")
        mapped[5000:5005] = b"later"
    service.run("volume", "reset", "--hard", "db", "HEAD")
    assert (db / "mapped").read_bytes()[5000:5005] == b"first"


def test_only_what_changed_is_copied_again(service: RunningDaemon, db: Path) -> None:
    for number in range(50):
        (db / f"f{number}").write_bytes(b"x" * 4096)
    os.sync()
    time.sleep(2 * stamps.FRESH_NS / 1e9)  # what is younger may change unseen, and is copied again
    assert service.json("volume", "snapshot", "db", "-m", "one")["files"] == 50
    (db / "f7").write_bytes(b"y")
    service.json("volume", "snapshot", "db", "-m", "two")
    (db / "f8").write_bytes(b"z")
    again = service.json("volume", "snapshot", "db", "-m", "three")
    assert again["files"] <= 2
    assert again["pause_ms"] > 0


def test_branches_diverge_and_each_keeps_its_own(service: RunningDaemon, db: Path) -> None:
    (db / "file").write_text("base")
    take(service, "base")
    service.run("branch", "create", "db", "side")
    service.run("branch", "switch", "db", "side")
    (db / "file").write_text("side")
    take(service, "on the side")
    service.run("branch", "switch", "db", "main")
    assert (db / "file").read_text() == "base"
    (db / "file").write_text("main")
    take(service, "on main")
    assert messages(service, "side") == ["on the side", "base"]
    assert messages(service) == ["on main", "base"]
    assert sorted(messages(service, "--all")) == ["base", "on main", "on the side"]
    names = [it["name"] for it in service.json("branch", "list", "db")]
    assert names == ["main", "side"]
    graph = service.run("volume", "log", "db", "--all").stdout.splitlines()
    assert [line.split("  ")[0] for line in graph] == ["*", "| *", "|/", "*"]
    service.run("branch", "switch", "db", "side")
    assert (db / "file").read_text() == "side"


def test_a_new_branch_of_a_volume_keeps_changes_that_no_snapshot_has(
    service: RunningDaemon, db: Path
) -> None:
    (db / "file").write_text("base")
    take(service, "base")
    (db / "file").write_text("dirty")
    service.run("branch", "create", "db", "side")
    service.run("branch", "switch", "db", "side")
    assert (db / "file").read_text() == "dirty"
    take(service, "dirty")
    assert messages(service, "main") == ["base"]
    refused = service.run("branch", "switch", "db", "nothing", check=False)
    assert refused.exit_code == 1
    (db / "file").write_text("dirty again")
    refused = service.run("branch", "switch", "db", "main", check=False)
    assert "has changes that no snapshot has" in refused.stderr
    service.run("branch", "switch", "db", "main", "--discard")
    assert (db / "file").read_text() == "base"


def test_a_reset_can_itself_be_undone_until_history_expires(
    service: RunningDaemon, db: Path
) -> None:
    (db / "file").write_text("1")
    take(service, "one")
    (db / "file").write_text("2")
    second = take(service, "two")
    service.run("volume", "reset", "--hard", "db", "HEAD^")
    assert (db / "file").read_text() == "1"
    assert service.json("volume", "prune")["snapshots"] == 0
    service.run("volume", "reset", "--hard", "db", second[:8])
    assert (db / "file").read_text() == "2"
    service.run("volume", "reset", "--hard", "db", "main~1")
    assert service.json("volume", "prune", "--before", "0s")["snapshots"] == 1
    gone = service.run("volume", "reset", "--hard", "db", second, check=False)
    assert gone.exit_code == 1
    assert (db / "file").read_text() == "1"


def test_a_branch_is_found_as_it_was_at_a_time(service: RunningDaemon, db: Path) -> None:
    take(service, "one")
    moment = service.json("volume", "log", "db")[0]["created"]
    take(service, "two")
    assert messages(service, f"main@{{{moment}}}")[0] in ("one", "two")
    service.run("branch", "rename", "db", "main", "trunk")
    assert messages(service, "trunk@{0s}")[0] == "two"
    assert messages(service, "HEAD^") == ["one"]
    for bad in ("main", "HEAD~9", "trunk@{1y}", "no such", "{}"):
        assert service.run("volume", "log", "db", bad, check=False).exit_code in (1, 2)


def test_a_time_before_the_history_is_refused_by_the_name_that_people_know(
    service: RunningDaemon, db: Path
) -> None:
    refused = service.run("volume", "clone", "db", "trial", "HEAD@{2001-01-01}", check=False)
    assert "volume 'db' has no history yet" in refused.stderr
    take(service, "one")
    for ref, called in (("main", "branch 'main'"), ("HEAD", "volume 'db'")):
        refused = service.run(
            "volume", "clone", "db", "trial", f"{ref}@{{2001-01-01}}", check=False
        )
        assert f"{called} has no snapshot of 200" in refused.stderr
        assert "its history begins at 20" in refused.stderr


def test_a_log_shows_where_the_volume_stands(service: RunningDaemon, db: Path) -> None:
    take(service, "one")
    take(service, "two")
    service.run("branch", "switch", "db", "main^")
    shown = service.run("volume", "log", "db", "--all").stdout.splitlines()
    assert ["(main)" in it for it in shown] == [True, False]
    assert ["(HEAD)" in it for it in shown] == [False, True]


def test_a_history_tells_where_a_volume_and_a_branch_were(service: RunningDaemon, db: Path) -> None:
    assert service.json("volume", "history", "db") == []
    one, two = take(service, "one"), take(service, "two")
    service.run("branch", "create", "db", "side", one)
    service.run("volume", "reset", "--hard", "db", "HEAD^")
    for of in (("db",), ("db", "main")):
        found = service.json("volume", "history", *of)
        assert [it["snapshot"] for it in found] == [one, two, one]
        assert [it["reason"] for it in found] == ["reset to HEAD^", "two", "one"]
    assert [it["message"] for it in service.json("volume", "history", "db", "side")] == ["one"]
    assert len(service.json("volume", "history", "db", "-n", "2")) == 2
    shown = service.run("volume", "history", "db").stdout
    assert "reset to HEAD^" in shown
    refused = service.run("volume", "history", "db", "none", check=False)
    assert "branch 'none' does not exist; there are: main, side" in refused.stderr


def test_sets_are_listed_described_and_removed(service: RunningDaemon, db: Path) -> None:
    take(service, "one")
    service.run("volume", "create", "web", "--prefix", "team/a", "--description", "pages")
    service.run("volume", "edit", "db", "--owner", "ann", "tier=gold", "old=x")
    service.run("volume", "edit", "db", "--description", "orders", "old=")
    (found,) = service.json("volume", "sets", "--owner", "ann", "--attribute", "tier=gold")
    assert (found["path"], found["volumes"], found["snapshots"]) == ("db", ["db"], 1)
    assert (found["description"], found["attributes"]) == ("orders", {"tier": "gold"})
    paths = [it["path"] for it in service.json("volume", "sets", "--reverse")]
    assert paths == ["team/a/web", "db"]
    only = ("--match", "*b*", "--offset", "1", "--limit", "1")
    assert [it["path"] for it in service.json("volume", "sets", *only)] == ["team/a/web"]
    service.run("volume", "edit", "db", "--ref", "HEAD", "--description", "better", "kept=yes")
    (snapshot,) = service.json("volume", "log", "db")
    assert (snapshot["message"], snapshot["attributes"]) == ("better", {"kept": "yes"})
    refused = service.run("volume", "edit", "web", "--name", "db", "--prefix", "", check=False)
    assert "volume set 'db' already exists" in refused.stderr
    refused = service.run("volume", "remove", "--history", "team/a/web", check=False)
    assert "has volumes: web" in refused.stderr
    (db / "file").write_text("x")
    service.run("volume", "clone", "db", "again")
    service.run("volume", "remove", "web")
    assert [it["path"] for it in service.json("volume", "sets")] == ["db"]


def test_a_volume_goes_when_nothing_is_lost_or_its_user_says_so(
    service: RunningDaemon, db: Path
) -> None:
    def refusal() -> str:
        refused = service.run("volume", "remove", "other", check=False)
        assert refused.exit_code == 1
        assert "other" in [it["name"] for it in service.json("volume", "list")]
        return refused.stderr

    service.run("volume", "create", "other", "--mount")
    place = service.state / "volumes" / "other"
    (place / "one").write_text("1")
    assert f"volume 'other' is mounted at {place}" in refusal()
    assert (place / "one").read_text() == "1"
    service.run("volume", "umount", "other")
    assert "has 1 change that no snapshot has; take one, or give --discard" in refusal()
    service.run("volume", "mount", "other")
    service.run("volume", "snapshot", "other", "-m", "one")
    (place / "two").write_text("2")
    (place / "one").unlink()
    service.run("volume", "umount", "other")
    assert "has 2 changes that no snapshot has" in refusal()
    service.run("volume", "clone", "other", "again")
    service.run("volume", "remove", "again")
    service.run("volume", "remove", "--discard", "other")
    service.run("volume", "create", "empty")
    service.run("volume", "remove", "empty")
    assert [it["name"] for it in service.json("volume", "list")] == ["db"]
    service.run("volume", "remove", "--history", "other")


def test_a_set_without_a_volume_here_is_removed_with_its_history(
    service: RunningDaemon, db: Path
) -> None:
    service.run("volume", "create", "other")
    service.run("volume", "snapshot", "other", "-m", "one")
    service.run("volume", "remove", "other")
    assert [it["path"] for it in service.json("volume", "sets")] == ["db", "other"]
    shown = service.run("volume", "sets").stdout
    assert "LAST SNAPSHOT" in shown
    service.run("volume", "remove", "--history", "other")
    assert [it["path"] for it in service.json("volume", "sets")] == ["db"]
    assert len(service.json("snapshot", "list")) == 1
    missing = service.run("volume", "remove", "--history", "other", check=False)
    assert "volume set 'other' does not exist" in missing.stderr


def test_two_versions_run_side_by_side(service: RunningDaemon, db: Path) -> None:
    (db / "file").write_text("old")
    take(service, "old")
    (db / "file").write_text("new")
    service.run("volume", "clone", "db", "trial", "main")
    trial = Path(service.run("volume", "mount", "trial").stdout.strip())
    assert (trial / "file").read_text() == "old"
    (trial / "file").write_text("trial")
    made = service.json("volume", "snapshot", "trial", "-m", "tried")
    assert made["branch"] == "trial"
    assert (db / "file").read_text() == "new"
    assert service.run("volume", "remove", "--history", "db", check=False).exit_code == 1
    refused = service.run("branch", "remove", "db", "trial", check=False)
    assert "in use by trial" in refused.stderr


def test_a_snapshot_is_looked_at_without_a_volume(
    service: RunningDaemon, db: Path, tmp_path: Path
) -> None:
    (db / "file").write_text("old")
    take(service, "old")
    (db / "file").write_text("new")
    look = tmp_path / "look"
    look.mkdir()
    service.run("volume", "mount", "db", "--ref", "main", look)
    assert (look / "file").read_text() == "old"
    with pytest.raises(OSError, match="Read-only"):
        (look / "file").write_text("changed")
    service.run("umount", look)
    assert service.run("volume", "mount", "db", "--ref", "main", check=False).exit_code == 2


def test_a_diff_tells_what_changed(service: RunningDaemon, db: Path) -> None:
    (db / "same").write_text("same")
    (db / "file").write_text("1")
    (db / "directory").mkdir()
    take(service, "one")
    (db / "file").write_text("22")
    (db / "added").write_text("")
    (db / "directory").rmdir()
    found = {it["path"]: it["kind"] for it in service.json("volume", "diff", "db")}
    assert found == {"file": "changed", "added": "added", "directory": "deleted"}
    take(service, "two")
    assert service.json("volume", "diff", "db") == []
    found = {it["path"]: it["kind"] for it in service.json("volume", "diff", "db", "HEAD^", "HEAD")}
    assert found == {"file": "changed", "added": "added", "directory": "deleted"}


def test_a_size_is_kept_and_changed_while_in_use(service: RunningDaemon, db: Path) -> None:
    service.run("volume", "resize", "db", "1MiB")
    with pytest.raises(OSError, match=r"quota|space"):
        (db / "file").write_bytes(b"x" * (2 << 20))
    service.run("volume", "resize", "db", "none")
    (db / "file").write_bytes(b"x" * (2 << 20))
    assert service.json("volume", "info", "db")["limit_bytes"] is None


@pytest.fixture
def user(db: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a file of the volume open."""
    (db / "file").write_text("x")
    with (db / "file").open() as file:
        process = subprocess.Popen(["sleep", "600"], stdin=file)
    yield process
    process.kill()
    process.wait()


def test_a_volume_in_use_is_not_taken_away(
    service: RunningDaemon, db: Path, user: subprocess.Popen[bytes]
) -> None:
    take(service, "one")
    refused = service.run("volume", "reset", "--hard", "db", "HEAD", check=False)
    assert f"sleep ({user.pid})" in refused.stderr
    assert (db / "file").read_text() == "x"
    refused = service.run("volume", "umount", "db", check=False)
    assert f"sleep ({user.pid})" in refused.stderr


def test_who_uses_one_volume_does_not_hold_another(
    service: RunningDaemon, user: subprocess.Popen[bytes]
) -> None:
    service.run("volume", "create", "never-mounted")
    service.run("volume", "remove", "never-mounted")
    assert user.poll() is None


def test_a_mount_elsewhere_that_cannot_be_leaves_the_volume_where_it_is(
    service: RunningDaemon, db: Path, tmp_path: Path
) -> None:
    (db / "file").write_text("x")
    full, taken = tmp_path / "full", tmp_path / "taken"
    full.mkdir()
    (full / "in-the-way").touch()
    service.run("volume", "create", "other", "--path", str(taken))
    before = service.json("volume", "info", "db")
    for path, reason in (
        (full, "has files in it"),
        (full / "in-the-way", "it is no directory; name another path"),
        (Path("/proc/x"), "cannot be made (no such file or directory); name another path"),
        (taken, "is volume 'other'"),
    ):
        refused = service.run("volume", "mount", "db", str(path), check=False)
        assert reason in refused.stderr
        assert (db / "file").read_text() == "x"
        assert service.json("volume", "info", "db") == before
    service.run("volume", "mount", "db", str(tmp_path / "free"))
    assert (tmp_path / "free" / "file").read_text() == "x"
    assert list(db.iterdir()) == []


def test_a_removal_that_is_refused_leaves_the_volume_mounted(
    service: RunningDaemon, db: Path
) -> None:
    (db / "file").write_text("x")
    take(service, "one")
    service.run("volume", "clone", "db", "other")
    refused = service.run("volume", "remove", "--history", "db", check=False)
    assert refused.exit_code == 1
    assert (db / "file").read_text() == "x"


def test_a_path_with_a_symbolic_link_is_the_directory_that_it_leads_to(
    service: RunningDaemon, db: Path, tmp_path: Path
) -> None:
    """Tables of mounts know no links: who used the volume was not found, nor its mount."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "link" / "db"
    service.run("volume", "mount", "db", str(path))
    assert service.json("volume", "info", "db")["mounted_at"] == str(tmp_path / "real" / "db")
    (path / "file").write_text("one")
    take(service, "one")
    (path / "file").write_text("two")
    with (path / "file").open():
        refused = service.run("volume", "reset", "--hard", "db", "HEAD", check=False)
        assert "is used by" in refused.stderr
    service.run("volume", "reset", "--hard", "db", "HEAD")
    assert (path / "file").read_text() == "one"
    service.run("volume", "umount", "db")
    assert list(path.iterdir()) == []


def test_a_volume_that_is_bound_to_another_place_too_stays_as_it_is(
    service: RunningDaemon, db: Path, tmp_path: Path
) -> None:
    """Who uses it there has paths of there, and would go on with a tree that is gone."""
    take(service, "one")
    (db / "directory").mkdir()
    for source in (db, db / "directory"):
        subprocess.run(["mount", "--bind", source, tmp_path], check=True)
        try:
            for command in (("reset", "--hard", "db", "HEAD"), ("remove", "--discard", "db")):
                refused = service.run("volume", *command, check=False)
                assert f"mounted at {tmp_path} too" in refused.stderr
                (db / "directory" / "file").write_text("x")
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    service.run("volume", "reset", "--hard", "db", "HEAD")
    assert list(db.iterdir()) == []


def test_users_are_told_with_a_signal_before_a_switch(
    service: RunningDaemon, db: Path, user: subprocess.Popen[bytes]
) -> None:
    take(service, "one")
    (db / "file").write_text("y")
    service.run("volume", "reset", "--hard", "db", "HEAD", "--signal", "TERM")
    assert user.wait() == -signal.SIGTERM
    assert (db / "file").read_text() == "x"
    bad = service.run("volume", "reset", "--hard", "db", "HEAD", "--signal", "NO", check=False)
    assert bad.exit_code == 1
    assert "signal 'NO' is not known" in bad.stderr


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of the unified hierarchy, gone at the end."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (place,) = [line.split(" ")[4] for line in lines if " - cgroup2 " in line][:1]
    path = Path(place) / f"snapfs-test-volumes-{os.getpid()}"
    path.mkdir()
    yield path
    eventually(lambda: not (path / "cgroup.procs").read_text(), what="an empty group")
    path.rmdir()


@pytest.fixture
def contained(db: Path, group: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell with the volume in another place of its own mount name space, in a control group of
    its own, which tells what it sees."""
    (db / "file").write_text("one")
    inside = db.with_name("inside")
    inside.mkdir(exist_ok=True)
    script = f"""
        echo $$ >{group}/cgroup.procs
        mount --bind {db} {inside}
        umount {db}
        echo ready
        while read -r word; do cat {inside}/file; echo; done
    """
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def seen(contained: subprocess.Popen[str]) -> str:
    assert contained.stdin is not None
    assert contained.stdout is not None
    contained.stdin.write("look\n")
    return contained.stdout.readline().strip()


def test_containers_are_paused_and_see_the_new_tree_afterwards(
    service: RunningDaemon, db: Path, contained: subprocess.Popen[str], group: Path
) -> None:
    take(service, "one")
    (db / "file").write_text("two")
    assert seen(contained) == "two"
    refused = service.run("volume", "reset", "--hard", "db", "HEAD", check=False)
    assert refused.exit_code == 1
    assert seen(contained) == "two"
    service.run("volume", "reset", "--hard", "db", "HEAD", "--pause")
    assert (group / "cgroup.freeze").read_text() == "0\n"
    assert seen(contained) == (db / "file").read_text() == "one"


def test_a_volume_in_a_container_is_not_removed(
    service: RunningDaemon, db: Path, contained: subprocess.Popen[str]
) -> None:
    refused = service.run("volume", "remove", "--discard", "db", check=False)
    assert f"is used by sh ({contained.pid})" in refused.stderr
    assert seen(contained) == (db / "file").read_text() == "one"


def test_a_volume_that_only_a_container_has_is_not_replaced_behind_its_back(
    service: RunningDaemon, db: Path, contained: subprocess.Popen[str]
) -> None:
    take(service, "one")
    (db / "file").write_text("two")
    service.run("volume", "umount", "db")
    refused = service.run("volume", "reset", "--hard", "db", "HEAD", check=False)
    assert f"is used by sh ({contained.pid})" in refused.stderr
    assert seen(contained) == "two"
    service.run("volume", "reset", "--hard", "db", "HEAD", "--pause")
    assert seen(contained) == "one"


def test_a_copy_of_all_mounts_is_no_use_and_gets_the_new_tree(
    service: RunningDaemon, db: Path
) -> None:
    take(service, "one")
    (db / "file").write_text("new")
    looks = ["unshare", "-m", "--propagation", "private", "sh", "-c", f"read -r word; ls {db}"]
    with subprocess.Popen(
        looks, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        there = Path(f"/proc/{process.pid}/ns/mnt")
        eventually(lambda: there.stat().st_ino != Path("/proc/self/ns/mnt").stat().st_ino)
        service.run("volume", "reset", "--hard", "db", "HEAD", "--signal", "TERM")
        assert process.poll() is None
        listed, _ = process.communicate("look\n", timeout=60)
    assert listed.split() == sorted(it.name for it in db.iterdir())


def test_changes_that_users_make_as_they_end_are_not_discarded(
    service: RunningDaemon, db: Path
) -> None:
    take(service, "one")
    service.run("branch", "create", "db", "side")
    (db / "more").write_text("")
    take(service, "two")
    script = (
        f"trap 'echo last >{db}/words; exit' TERM; cd {db}; echo ready; while :; do sleep 0.1; done"
    )
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        refused = service.run("branch", "switch", "db", "side", "--signal", "TERM", check=False)
    assert "has changes that no snapshot has" in refused.stderr
    assert (db / "words").read_text() == "last\n"


def test_groups_that_a_killed_service_left_frozen_run_again(
    service: RunningDaemon, db: Path, contained: subprocess.Popen[str], group: Path
) -> None:
    (group / "cgroup.freeze").write_text("1")
    (service.state / "volumes.frozen").write_text(f"{group}\n")
    service.kill()
    service.start()
    assert (group / "cgroup.freeze").read_text() == "0\n"
    assert seen(contained) == "one"


def test_who_has_no_control_group_is_not_paused(
    service: RunningDaemon, db: Path, user: subprocess.Popen[bytes]
) -> None:
    take(service, "one")
    refused = service.run("volume", "reset", "--hard", "db", "HEAD", "--pause", check=False)
    assert "cannot be paused" in refused.stderr
    assert (db / "file").read_text() == "x"


def test_volumes_are_there_again_after_the_service_was_killed(
    service: RunningDaemon, db: Path
) -> None:
    (db / "file").write_text("1")
    take(service, "one")
    with (db / "file").open("a") as file:
        service.kill()
        file.write("2")
        file.flush()
        service.start()
        file.write("3")
    assert (db / "file").read_text() == "123"
    assert service.json("volume", "info", "db")["mounted_at"] == str(db)
    service.run("volume", "reset", "--hard", "db", "HEAD")
    assert (db / "file").read_text() == "1"


def test_data_of_volumes_is_not_removed_by_other_means(service: RunningDaemon, db: Path) -> None:
    take(service, "one")
    for snapshot in service.json("snapshot", "list"):
        refused = service.run("snapshot", "remove", snapshot["name"], check=False)
        assert refused.exit_code == 1
    assert service.json("fsck") == []

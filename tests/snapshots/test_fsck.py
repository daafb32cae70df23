"""fsck finds what is out of step, mends what is safe to mend, and changes nothing unless asked."""

import errno
import os
import shutil
import threading

import msgspec
import pytest

from snapfs.model import FailedPrecondition, NotFound, SnapfsError, SnapshotId
from snapfs.snapshots import NoTrees, Snapshotter, examination, fsck, records, recovery
from snapfs.snapshots.metastore import MetaStore
from snapfs.snapshots.reserve import RANGE
from snapfs.snapshots.schema import Creating, encode_intent
from snapfs.store import Store


@pytest.fixture
def stocked(root):
    """A closed root: base (1) <- middle (2) <- active (3), view (4)."""
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        (root / "layers/1/fs/file").write_text("data")
        snapshotter.commit("a", "base")
        snapshotter.prepare("b", "base")
        snapshotter.commit("b", "middle")
        snapshotter.prepare("active", "middle")
        snapshotter.view("view", "middle")
    return root


def change(root, name, **fields):
    """Change what is stored for a snapshot, past all rules."""
    with MetaStore(root / "metadata") as metastore:

        def amend(tx):
            row = records.find(tx, name)
            tx.update(row, msgspec.structs.replace(row.body, **fields))

        metastore.store.update(amend)


def kinds(report):
    return [problem.kind for problem in report.problems]


def listing(root):
    return sorted(str(path) for path in (root / "layers").rglob("*"))


def check_is_mended(root, kind, count=1):
    """Find the problem, twice since a dry run changes nothing; mend it; find nothing."""
    before = listing(root)
    for _ in range(2):
        found = fsck(root)
        assert kinds(found) == [kind] * count
        assert not any(problem.repaired for problem in found.problems)
    assert listing(root) == before
    mended = fsck(root, repair=True)
    assert kinds(mended) == [kind] * count
    assert all(problem.repaired for problem in mended.problems)
    assert fsck(root).clean
    return mended.problems


def test_a_sound_root_is_clean(stocked):
    assert fsck(stocked).clean
    assert fsck(stocked, repair=True).clean


def test_an_orphan_directory_is_deleted(stocked):
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("gone")
        orphan = stocked / "layers" / str(snapshotter.stat("gone").id)
        shutil.copytree(orphan, stocked / "saved")
        snapshotter.remove("gone")
        snapshotter.cleanup()
    shutil.move(stocked / "saved", orphan)
    (problem,) = check_is_mended(stocked, "orphan-directory")
    assert problem.subject == str(orphan)
    assert not orphan.exists()


@pytest.mark.parametrize("name", ["4711", "007", "notes", "-1", "1.old"])
def test_a_directory_that_this_store_knows_nothing_of_is_never_deleted(stocked, name):
    (stocked / "layers" / name).mkdir()
    found = fsck(stocked, repair=True)
    assert kinds(found) == ["unknown-directory"]
    assert not found.problems[0].repaired
    assert (stocked / "layers" / name).is_dir()


@pytest.mark.parametrize("lost", ["3", "3/fs", "3/work"])
def test_the_directory_of_an_active_snapshot_is_made_again(stocked, lost):
    shutil.rmtree(stocked / "layers" / lost)
    (problem,) = check_is_mended(stocked, "missing-directory")
    assert "'active'" in problem.subject
    assert ("changes are lost" in problem.message) is (lost != "3/work")
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        snapshotter.commit("active", "top")


def test_the_directory_of_a_committed_snapshot_is_not_made_up(stocked):
    shutil.rmtree(stocked / "layers" / "1")
    found = fsck(stocked, repair=True)
    assert kinds(found) == ["missing-directory"]
    assert not found.problems[0].repaired
    assert "remove the snapshot and its children" in found.problems[0].message
    assert not (stocked / "layers" / "1").exists()
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        for name in ("active", "view", "middle", "base"):
            snapshotter.remove(name)
        assert snapshotter.cleanup() == ()
    assert fsck(stocked).clean


def test_wrong_usage_is_measured_anew(stocked):
    change(stocked, "base", size_bytes=1, inodes=99)
    (problem,) = check_is_mended(stocked, "wrong-usage")
    assert "99 inodes" in problem.message
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        assert snapshotter.stat("base").usage.inodes == 2


def test_a_chain_that_does_not_follow_the_parents_is_made_anew(stocked):
    change(stocked, "active", chain=(1, 2))
    (problem,) = check_is_mended(stocked, "broken-chain")
    assert "(1, 2)" in problem.message
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        assert snapshotter.stat("active").parent_ids == (2, 1)


def test_a_parent_that_is_not_committed_is_reported(stocked):
    change(stocked, "middle", kind=2, size_bytes=0, inodes=0)
    found = fsck(stocked)
    assert set(kinds(found)) == {"broken-chain"}
    assert {problem.subject for problem in found.problems} == {
        "snapshot 'active'",
        "snapshot 'view'",
    }


def test_a_stale_reservation_is_cleared_and_what_it_left_deleted(stocked):
    with MetaStore(stocked / "metadata") as metastore:
        first, *_, last = metastore.store.update(lambda tx: [records.new_id(tx) for _ in range(8)])
        intent = encode_intent(Creating(first, last))
        metastore.store.update(lambda tx: tx.put_intent(intent))
    (stocked / "layers" / str(first) / "fs").mkdir(parents=True)
    check_is_mended(stocked, "stale-intent")
    assert not (stocked / "layers" / str(first)).exists()


def test_a_promised_removal_is_done(stocked):
    with MetaStore(stocked / "metadata") as metastore:

        def remove(tx):
            body = records.remove(tx, "active")
            recovery.promise_removal(tx, SnapshotId(body.id))

        metastore.store.update(remove)
    check_is_mended(stocked, "stale-intent")
    assert not (stocked / "layers" / "3").exists()


def test_several_problems_are_found_and_mended_at_once(stocked):
    change(stocked, "base", inodes=99)
    change(stocked, "view", chain=())
    shutil.rmtree(stocked / "layers" / "3" / "work")
    found = fsck(stocked, repair=True)
    assert sorted(kinds(found)) == ["broken-chain", "missing-directory", "wrong-usage"]
    assert fsck(stocked).clean


def test_an_orphan_that_cannot_be_deleted_says_why_and_the_rest_is_mended(stocked, monkeypatch):
    (stocked / "layers" / "4" / "fs").mkdir(parents=True)
    change(stocked, "base", inodes=99)

    def refuse(path, *, budget_s):
        raise OSError(16, "Device or resource busy", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("snapfs.snapshots.examination.erase", refuse)
        with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
            snapshotter.remove("view")
        found = fsck(stocked, repair=True)
    by_kind = {problem.kind: problem for problem in found.problems}
    assert not by_kind["orphan-directory"].repaired
    assert "resource busy" in by_kind["orphan-directory"].message
    assert by_kind["wrong-usage"].repaired
    fsck(stocked, repair=True)
    assert fsck(stocked).clean


def test_a_serving_snapshotter_checks_itself_and_its_work_under_way_is_no_problem(stocked):
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("new")
        assert snapshotter.fsck().clean
        shutil.rmtree(stocked / "layers" / "3" / "work")
        assert kinds(snapshotter.fsck()) == ["missing-directory"]
        assert snapshotter.fsck(repair=True).problems[0].repaired
        assert snapshotter.fsck().clean


def test_a_repair_leaves_alone_what_is_being_created_since_it_began(root, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def wait(step):
        if step == "create.made":
            begun.set()
            assert go_on.wait(30)

    def check_later(store):
        """Begin a creation, the first of its range of ids, after fsck has begun."""
        thread.start()
        assert begun.wait(30)
        return []

    with Snapshotter(root, trees=NoTrees(), steps=wait) as snapshotter:
        thread = threading.Thread(target=snapshotter.prepare, args=("a",))
        monkeypatch.setattr(Store, "check", check_later)
        try:
            assert snapshotter.fsck(repair=True).clean
        finally:
            go_on.set()
            thread.join(30)
        assert (root / "layers" / str(snapshotter.stat("a").id) / "fs").is_dir()
        for number in range(2 * RANGE):
            snapshotter.view(f"view{number}", "")


def test_an_orphan_that_a_serving_snapshotter_cannot_delete_is_found_again(stocked, monkeypatch):
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        snapshotter.remove("view")
        (stocked / "layers/4/fs").mkdir(parents=True)
        with monkeypatch.context() as broken:
            broken.setattr(examination, "erase", refuse)
            found = snapshotter.fsck(repair=True).problems
            assert [(it.kind, it.repaired) for it in found] == [("orphan-directory", False)]
        assert kinds(snapshotter.fsck()) == ["orphan-directory"]
        assert snapshotter.fsck(repair=True).problems[0].repaired
        assert snapshotter.fsck().clean


def refuse(path, *, budget_s):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))


def test_a_dry_run_works_beside_a_serving_snapshotter_and_a_repair_is_refused(stocked):
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        snapshotter.view("v2", "base")
        assert set(kinds(fsck(stocked))) <= {"stale-intent"}
        with pytest.raises(FailedPrecondition):
            fsck(stocked, repair=True)


@pytest.mark.logs("layer.set_aside")
def test_directories_of_newer_metadata_survive_an_old_copy_of_it(stocked):
    """Restore old metadata beside newer layers: nothing may take those for its own garbage."""
    shutil.copytree(stocked / "metadata", stocked / "copy")
    with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
        for number in range(40):
            snapshotter.prepare(f"newer{number}")
        newer = [snapshotter.stat(f"newer{number}").id for number in range(40)]
    shutil.rmtree(stocked / "metadata")
    shutil.move(stocked / "copy", stocked / "metadata")
    (stocked / "layers" / str(newer[0]) / "fs" / "precious").write_text("data")
    assert set(kinds(fsck(stocked, repair=True))) == {"unknown-directory"}
    for _ in range(2):
        with Snapshotter(stocked, trees=NoTrees()) as snapshotter:
            for number in range(30):
                snapshotter.prepare(f"{number}")
            for number in range(30):
                snapshotter.remove(f"{number}")
            assert snapshotter.cleanup() == ()
    assert set(kinds(fsck(stocked, repair=True))) == {"unknown-directory"}
    aside = stocked / "layers" / f"{newer[0]}.unknown-1"
    assert (aside / "fs" / "precious").read_text() == "data"
    left = [path for path in (stocked / "layers").iterdir() if int(path.name.split(".")[0]) > 4]
    assert len(left) == 40


def test_a_path_without_a_root_is_refused(tmp_path):
    with pytest.raises(NotFound):
        fsck(tmp_path / "absent")
    assert os.listdir(tmp_path) == []


def test_a_damaged_data_file_is_an_error_that_names_it(stocked):
    data = stocked / "metadata" / "data.mdb"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(SnapfsError, match=str(data.parent)):
        fsck(stocked)

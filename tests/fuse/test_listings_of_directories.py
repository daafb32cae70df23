"""Listings through the mount: whole, in any steps, whatever changes meanwhile and who answers."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from snapfs.fuse.control import PROBE_NAME
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries
from tests.support.past_python import without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

LOWER = 400


def many(layer: Path) -> None:
    directory = layer / "many"
    directory.mkdir()
    for number in range(LOWER):
        (directory / f"lower-{number:04}").write_text("x")


def upper_too(tree: Tree) -> Path:
    """A directory with names of both layers."""
    directory = tree / "many"
    for number in range(200):
        (directory / f"upper-{number:04}").write_text("y")
    return directory


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_there_all_the_time_is_listed_once(house: House, merged: bool, seed: int) -> None:
    tree = house.active(many)
    directory = upper_too(tree) if merged else tree / "many"
    choose = random.Random(seed)
    stable = set(os.listdir(directory))
    volatile = set(choose.sample(sorted(stable), 80))
    stable -= volatile
    waiting = sorted(volatile)
    seen: list[str] = []
    made = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 7 == 0:
                (directory / f"new-{seed}-{made}").write_text("new")
                made += 1
                if waiting:
                    (directory / waiting.pop(choose.randrange(len(waiting)))).unlink()
    assert len(seen) == len(set(seen))
    assert stable <= set(seen)
    assert set(seen) <= stable | volatile | {f"new-{seed}-{number}" for number in range(made)}
    assert set(os.listdir(directory)) == (stable | set(waiting)) | {
        f"new-{seed}-{number}" for number in range(made)
    }


def test_places_of_names_last(house: House) -> None:
    """telldir, seekdir and rewinddir, by the library of a program that uses them."""
    tree = house.active(many)
    script = (
        "opendir(D, shift) or die; my %at; my @first;"
        "while (1) { my $p = telldir D; my $n = readdir D; last unless defined $n;"
        " $at{$n} = $p; push @first, $n; }"
        "for my $n (reverse @first) { seekdir D, $at{$n}; readdir(D) eq $n or die $n; }"
        "rewinddir D; my @again = readdir D; print @again == @first ? 'same' : 'other';"
    )
    for directory in (tree / "many", upper_too(tree)):
        found = subprocess.run(["perl", "-e", script, directory], capture_output=True, check=True)
        assert found.stdout == b"same"


def test_listing_that_is_warm_follows_every_change(house: House) -> None:
    tree = house.active(many)
    directory = tree / "many"
    expected = set(os.listdir(directory))

    def check() -> None:
        assert set(os.listdir(directory)) == expected
        assert {entry.name for entry in os.scandir(directory)} == expected

    check()
    (directory / "lower-0001").write_text("copied up")
    check()
    (directory / "lower-0002").unlink()
    expected.remove("lower-0002")
    check()
    os.rename(directory / "lower-0003", directory / "renamed")
    expected ^= {"lower-0003", "renamed"}
    check()
    os.link(directory / "lower-0004", directory / "linked")
    expected.add("linked")
    check()
    os.rename(directory / "lower-0005", tree / "moved away")
    expected.remove("lower-0005")
    check()
    (directory / "inner").mkdir()
    os.symlink("x", directory / "symbolic")
    os.mkfifo(directory / "fifo")
    expected |= {"inner", "symbolic", "fifo"}
    check()
    types = {entry.name: entry.is_dir() for entry in os.scandir(directory)}
    assert types["inner"]
    assert not types["fifo"]
    os.rename(directory, tree / "another")
    directory = tree / "another"
    check()


def test_snapshots_that_come_and_go_are_listed(house: House) -> None:
    first = house.active()
    assert str(first.id) in os.listdir(house.mountpoint)
    second = house.active()
    names = os.listdir(house.mountpoint)
    assert str(second.id) in names
    assert os.fsdecode(PROBE_NAME) not in names
    house.snapshots.remove(second.key)
    assert str(second.id) not in os.listdir(house.mountpoint)


def test_numbers_in_a_listing_are_those_of_stat(house: House) -> None:
    tree = house.active(many)
    (tree / "many" / "lower-0007").write_text("copied up")
    drop_dentries()
    for entry in os.scandir(tree / "many"):
        assert entry.inode() == os.lstat(entry.path).st_ino


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_directory_that_a_dead_worker_knew_is_listed(own_house: House) -> None:
    tree = own_house.active(many)
    deep = tree / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "inside").write_text("x")
    os.lstat(deep)
    own_house.kill_worker()
    assert os.listdir(deep) == ["inside"]
    assert len(os.listdir(tree / "many")) == LOWER


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_listing_goes_on_with_the_next_worker(own_house: House) -> None:
    tree = own_house.active(many)
    with os.scandir(tree / "many") as entries:
        seen = [next(entries).name for _ in range(10)]
        own_house.kill_worker()
        seen += [entry.name for entry in entries]
    assert sorted(seen) == sorted(f"lower-{number:04}" for number in range(LOWER))


def test_hard_links_of_lower_files_stay_one_file(house: House) -> None:
    def linked(layer: Path) -> None:
        for name in ("here", "there"):
            (layer / name).mkdir()
        (layer / "here" / "one").write_text("first")
        os.link(layer / "here" / "one", layer / "there" / "two")
        os.link(layer / "here" / "one", layer / "there" / "three")

    tree = house.active(linked)
    subprocess.run(["find", tree.path, "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
    assert (tree / "there" / "two").stat().st_nlink == 3
    (tree / "here" / "one").write_text("second")
    assert (tree / "there" / "two").read_text() == "second"
    drop_dentries()
    assert (tree / "there" / "three").read_text() == "second"
    assert {entry.stat().st_nlink for entry in os.scandir(tree / "there")} == {3}
    (tree / "there" / "two").unlink()
    assert os.listdir(tree / "there") == ["three"]
    assert (tree / "there" / "three").stat().st_nlink == 2


def test_files_handed_out_without_nodes_are_counted_and_forgotten(own_house: House) -> None:
    tree = own_house.active(many)
    for entry in os.scandir(tree / "many"):
        entry.stat()
    assert own_house.worker().nodes >= LOWER
    (tree / "many" / "lower-0001").read_text()
    (tree / "many" / "lower-0002").write_text("changed")

    def is_forgotten() -> bool:
        drop_dentries()
        status = own_house.worker()
        return not (status.nodes or status.lookups)

    eventually(is_forgotten, what="the end of all nodes")
    assert (tree / "many" / "lower-0002").read_text() == "changed"


@pytest.mark.channel("the fast lane")
def test_end_of_a_listing_needs_no_python(house: House) -> None:
    tree = house.active(many)
    directory = tree / "new"
    directory.mkdir()
    for number in range(20):
        (directory / f"{number}").write_text("x")
    assert not (directory / "absent").exists()
    os.listdir(directory)
    (directory / "more").touch()
    with without_python(house, "READDIRPLUS", 1):
        assert len(os.listdir(directory)) == 21


@pytest.mark.parametrize("seed", range(3))
def test_who_begins_to_list_sees_what_others_have_listed_to_the_end_before(
    house: House, seed: int
) -> None:
    tree = house.active(many)
    directory = tree / "new"
    directory.mkdir()
    choose = random.Random(seed)
    made: set[str] = set()
    for turn in range(40):
        for number in range(choose.randrange(30)):
            (directory / f"{turn}-{number}").touch()
            made.add(f"{turn}-{number}")
        if choose.randrange(2):
            os.listdir(directory)
        with os.scandir(directory) as entries:
            seen = [next(entries).name] if made else []
            (directory / f"{turn}-late").touch()
            if choose.randrange(2):
                os.listdir(directory)
            seen += [entry.name for entry in entries]
        assert len(seen) == len(set(seen))
        assert made <= set(seen)
        made.add(f"{turn}-late")
        if made and choose.randrange(2):
            gone = choose.choice(sorted(made))
            (directory / gone).unlink()
            made.remove(gone)
        assert set(os.listdir(directory)) == made

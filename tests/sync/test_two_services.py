"""Two services in two network namespaces: over a socket, ssh and TLS; killed and resumed."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from snapfs.model import Unavailable
from snapfs.service import ways
from snapfs.service.exchange_client import ExchangePeer
from snapfs.sync import remotes
from tests.support.daemon import SNAPFS, eventually
from tests.sync.ends import Authority
from tests.sync.sites import Ground, Site

pytestmark = [pytest.mark.root, pytest.mark.fuse]

MIB = 1 << 20

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(tmp_path_factory.mktemp("sync"), stack)


@pytest.fixture
def sites(ground: Ground) -> Iterator[tuple[Site, Site]]:
    """Both services, for a volume of the test's own."""
    name = f"volume-{next(_numbers)}"
    made = Site(ground.ann, name), Site(ground.bob, name)
    yield made
    for site in made:
        for volume in site.json("volume", "list"):
            site.run("volume", "umount", volume["name"])
            site.run("volume", "remove", volume["name"])


def test_a_volume_is_pushed_and_used_there(sites: tuple[Site, Site]) -> None:
    ann, bob = sites
    ann.volume()
    (ann.db / "file").write_text("one")
    ann.snapshot("first")
    (ann.db / "file").write_text("two")
    ann.snapshot("second")
    assert ann.fates("push", "unix") == {"main": "pushed"}
    bob.working_copy()
    assert (bob.db / "file").read_text() == "two"
    assert [it["message"] for it in bob.json("volume", "log", bob.name)] == ["second", "first"]
    (bob.db / "file").write_text("three, of bob")
    theirs = bob.snapshot("third")
    assert ann.fates("sync", "unix") == {"main": "pulled"}
    assert ann.tips() == {"main": theirs}
    ann.run("branch", "switch", ann.name, "main")
    assert (ann.db / "file").read_text() == "three, of bob"
    for site in (ann, bob):
        site.run("fsck")


def test_a_terminal_shows_what_moves_how_fast_and_for_how_long(sites: tuple[Site, Site]) -> None:
    ann, _ = sites
    ann.volume()
    (ann.db / "file").write_bytes(os.urandom(48 * MIB))
    ann.snapshot()
    done = subprocess.run(
        ["script", "-qec", f"{SNAPFS} push {ann.name} unix", "/dev/null"],
        env={**os.environ, "SNAPFS_ADDRESS": str(ann.daemon.address), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
    assert "reading and comparing" in plain
    moved = r"\d+ of \d+ chunks, [\d.]+ MiB at [\d.]+ \w+/s +\d:\d\d:\d\d"
    assert re.search(rf"-> main, snapshot 1 of 1 \S+ +{moved}", plain), plain
    assert plain.splitlines()[-1] == "  main  pushed"


def short(snapshot: str) -> str:
    return snapshot[:8] + snapshot[-4:]


def test_a_field_that_was_changed_on_both_sides_is_told_and_settled_by_command(
    sites: tuple[Site, Site],
) -> None:
    ann, bob = sites
    ann.volume()
    ann.snapshot()
    ann.run("push", ann.name, "unix")
    ann.run("volume", "edit", ann.name, "--description", "of ann", "tier=gold")
    bob.run("volume", "edit", ann.name, "--description", "of bob", "old=yes")
    done = ann.run("sync", ann.name, "unix")
    assert "1 conflict: snapfs conflict list" in done.stdout
    assert "  set: attributes.tier changed there\n" in done.stdout
    assert "  set: attributes.old, description changed here\n" in done.stdout
    (row,) = ann.json("conflict", "list", ann.name)
    assert (row["ours"], row["theirs"], row["winner"]) == ("of ann", "of bob", "theirs")
    assert row["called"] == ann.name
    ann.run("conflict", "resolve", str(row["number"]), "--ours")
    ann.run("sync", ann.name, "unix")
    for site in sites:
        (found,) = site.json("volume", "sets", "--match", ann.name)
        assert found["description"] == "of ann"
        assert found["attributes"] == {"tier": "gold", "old": "yes"}


def test_the_deletion_of_a_set_is_told(sites: tuple[Site, Site]) -> None:
    ann, bob = sites
    ann.volume()
    ann.snapshot()
    assert "set:" not in ann.run("push", ann.name, "unix").stdout
    ann.run("volume", "umount", ann.name)
    ann.run("volume", "remove", "--history", ann.name)
    done = ann.run("sync", bob.json("volume", "sets", "--match", ann.name)[0]["id"], "unix")
    assert "  set: deleted there\n" in done.stdout
    assert bob.json("volume", "sets", "--match", ann.name) == []


def test_a_divergence_is_told_and_settled_by_command(sites: tuple[Site, Site]) -> None:
    ann, bob = sites
    ann.volume()
    ann.snapshot()
    ann.run("push", ann.name, "unix")
    bob.working_copy()
    (ann.db / "file").write_text("of ann")
    (bob.db / "file").write_text("of bob")
    ours, theirs = ann.snapshot(), bob.snapshot()
    done = ann.run("sync", ann.name, "unix", check=False)
    assert done.exit_code == 1
    assert "main  diverged: theirs is kept as unix/main" in done.stdout
    assert ann.tips() == {"main": ours, "unix/main": theirs}
    (row,) = ann.json("conflict", "list", ann.name)
    assert (row["field"], row["ours"], row["theirs"], row["winner"]) == ("tip", ours, theirs, None)
    assert row["called"] == "main"
    shown = ann.run("conflict", "list", ann.name).stdout
    assert f"branch main  tip    {short(ours)}  {short(theirs)}  (open)" in shown
    settled = ann.run("conflict", "resolve", str(row["number"]), "--theirs").stdout
    assert settled == f"branch main: tip is {short(theirs)}\n"
    assert ann.fates("sync", "unix") == {"main": "up to date"}
    assert ann.tips() == bob.tips() == {"main": theirs}
    ann.run("branch", "switch", ann.name, "main", "--discard")
    assert (ann.db / "file").read_text() == "of bob"


def test_what_cannot_be_is_said_plainly(sites: tuple[Site, Site]) -> None:
    ann, bob = sites
    ann.volume()
    ann.snapshot()
    for words, message in (
        (("push", ann.name), "there are several remotes"),
        (("push", ann.name, "nobody"), "remote 'nobody' does not exist"),
        (("remote", "add", "x", "ftp://host"), "is not the address of a remote"),
        (("remote", "add", "x", "ssh://-oProxyCommand=x/"), "is not the address of a remote"),
        (("conflict", "resolve", "9999", "--ours"), "conflict 9999 does not exist"),
    ):
        done = ann.run(*words, check=False)
        assert done.exit_code == 1
        assert message in done.stderr
    ann.run("remote", "add", "gone", f"unix://{bob.daemon.base}/nothing")
    done = ann.run("push", ann.name, "gone", check=False)
    assert done.exit_code == 1
    assert "remote 'gone' does not answer" in done.stderr
    ann.run("remote", "remove", "gone")
    done = ann.run("pull", "nothing", "unix", check=False)
    assert "exists neither here nor there" in done.stderr


@pytest.mark.parametrize("way", ["ssh", "tls"])
def test_a_set_is_synced_through(sites: tuple[Site, Site], way: str) -> None:
    ann, bob = sites
    ann.volume()
    (ann.db / "file").write_bytes(random.Random(1).randbytes(3 * MIB))
    tip = ann.snapshot()
    assert ann.fates("push", way) == {"main": "pushed"}
    assert bob.tips_of_set() == {"main": tip}
    bob.working_copy()
    (bob.db / "more").write_bytes(random.Random(2).randbytes(3 * MIB))
    tip = bob.snapshot()
    assert ann.fates("pull", way) == {"main": "pulled"}
    assert ann.tips() == {"main": tip}


def test_ssh_says_why_it_does_not_connect(ground: Ground, sites: tuple[Site, Site]) -> None:
    ann, _bob = sites
    ann.volume()
    ann.run("remote", "add", "no-ssh", ground.no_ssh)
    done = ann.run("push", ann.name, "no-ssh", check=False)
    assert done.exit_code == 1
    assert "remote 'no-ssh' does not answer (ssh: connect to host" in done.stderr


def test_tls_is_for_those_whom_the_authority_has_signed(ground: Ground) -> None:
    other = Authority(ground.base / "other")
    for signer, believed, is_let in (
        (ground.authority, ground.authority, True),
        (other, ground.authority, False),
        (ground.authority, other, False),
    ):
        certificate, key = signer.sign(f"eve{is_let}", "127.0.0.1")
        identity = ways.Identity(certificate, key, believed.certificate)
        connected = ways.connect(remotes.parse(ground.tls), identity)
        with ExchangePeer("bob", connected, timeout_s=20) as peer:
            if is_let:
                assert peer.hello().store
            else:
                with pytest.raises(Unavailable):
                    peer.hello()


@pytest.mark.parametrize("killed", ["here", "there"])
def test_a_side_that_is_killed_in_the_middle_goes_on_later(
    sites: tuple[Site, Site], killed: str
) -> None:
    ann, bob = sites
    ann.volume()
    (ann.db / "big").write_bytes(random.Random(2).randbytes(96 * MIB))
    tip = ann.snapshot()
    victim = (ann if killed == "here" else bob).daemon
    address = f"--address={ann.daemon.address}"
    command = [SNAPFS, "push", address, ann.name, "tls"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as pushing:
        eventually(
            lambda: bob.received_bytes() > 8 * MIB or pushing.poll() is not None, what="a part"
        )
        victim.kill()
        assert pushing.wait(60) == 1
    came = bob.received_bytes()
    victim.start()
    (report,) = ann.json("push", ann.name, "tls")
    assert report["ok"]
    assert report["sent_bytes"] < 96 * MIB - came // 2
    assert bob.tips_of_set() == {"main": tip}
    bob.working_copy()
    assert (bob.db / "big").read_bytes() == random.Random(2).randbytes(96 * MIB)
    for site in (ann, bob):
        site.run("fsck")

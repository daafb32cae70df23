"""What is not a sound store of ours is refused and left alone; damage never passes for data.

The damaged stores are opened in a child process, so that a crash of LMDB's would show as one.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from snapfs.model import DataLoss, FailedPrecondition, SnapfsError
from snapfs.store import ReadStore, Store, inspection, schema
from tests.store.kit import DOCS, SCOPE, TABLES, Doc, child

DOCS_MADE = 60
PAGE = 4096


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data file of a store with some of everything."""
    path = tmp_path_factory.mktemp("sound") / "metadata"
    with Store.open(path, TABLES) as store:
        base = store.update(lambda tx: tx.create(DOCS, SCOPE, "0", Doc("text of 0")))
        for number in range(1, DOCS_MADE):
            name = str(number) if number % 10 else "long" * 200 + str(number)
            body = Doc(f"text of {name}", parent=base.oid, tags=("t", "u" * 500), slug=name)
            store.update(lambda tx, n=name, b=body: tx.create(DOCS, SCOPE, n, b))
            store.update(lambda tx: tx.put_intent(b"p" * 50))
        gone = store.update(lambda tx: tx.create(DOCS, SCOPE, "large", Doc("x" * 30_000)))
        store.update(lambda tx: tx.delete(gone))
    return (path / inspection.DATA_FILE).read_bytes()


def place(root: Path, number: int, content: bytes) -> Path:
    path = root / f"case{number}"
    path.mkdir()
    (path / inspection.DATA_FILE).write_bytes(content)
    return path


def try_all(root: Path, contents: Iterator[bytes]) -> list[str]:
    """Open each of the damaged data files in a child process and return how each went."""
    answers = []
    with child("damage", str(root)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, content in enumerate(contents):
            path = place(root, number, content)
            print(path, file=process.stdin, flush=True)
            answer = process.stdout.readline().strip()
            assert answer, f"case {number} ended the process: {process.wait(20)}"
            answers.append(answer)
        process.stdin.close()
        assert process.wait(20) == 0
    return answers


def is_right(answer: str) -> bool:
    """Say whether everything was read right, or refused, or at least missed by check().

    A bit flipped in the key of a name can hide its row from the list; only check() can know.
    """
    if answer.startswith("ok"):
        return answer.startswith(f"ok {DOCS_MADE} ") or not answer.endswith("problems=0")
    return answer.startswith(("unread DataLoss", "refused DataLoss")) or (
        answer == "refused FailedPrecondition"
    )


def flips(sound: bytes, seed: int, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        content = bytearray(sound)
        for _ in range(chance.choice((1, 1, 1, 4, 40))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(content)


def cuts(sound: bytes) -> Iterator[bytes]:
    chance = random.Random(1)
    for length in (0, 1, 15, 16, 100, PAGE - 1, PAGE, PAGE + 16, 2 * PAGE - 1, 2 * PAGE):
        yield sound[:length]
    for page in range(3, len(sound) // PAGE, 3):
        yield sound[: page * PAGE]
        yield sound[: page * PAGE + chance.randrange(PAGE)]


def bad_pages(sound: bytes, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    pages = len(sound) // PAGE
    for page in range(pages):
        at = page * PAGE
        other = chance.randrange(pages) * PAGE
        for content in (bytes(PAGE), chance.randbytes(PAGE), sound[other : other + PAGE]):
            if content != sound[at : at + PAGE]:
                yield sound[:at] + content + sound[at + PAGE :]


def headers(sound: bytes, seed: int) -> Iterator[bytes]:
    """Flips where they hurt: in page headers, in pointers to nodes, in the meta pages."""
    chance = random.Random(seed)
    for page in range(len(sound) // PAGE):
        for _ in range(2):
            content = bytearray(sound)
            content[page * PAGE + chance.randrange(160)] ^= 1 << chance.randrange(8)
            yield bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_never_crash_nor_pass_for_data(
    sound: bytes, tmp_path: Path, seed: int
) -> None:
    answers = try_all(tmp_path, flips(sound, seed, 80))
    assert [answer for answer in answers if not is_right(answer)] == []
    assert any(answer.startswith("refused") for answer in answers)


@pytest.mark.slow
def test_flipped_bits_in_page_headers_never_crash(sound: bytes, tmp_path: Path) -> None:
    answers = try_all(tmp_path, headers(sound, 1))
    assert [answer for answer in answers if not is_right(answer)] == []


@pytest.mark.slow
def test_cut_files_are_refused_or_lost_nothing(sound: bytes, tmp_path: Path) -> None:
    answers = try_all(tmp_path, cuts(sound))
    assert [answer for answer in answers if not is_right(answer)] == []
    assert answers[:10] == ["refused DataLoss"] * 10


@pytest.mark.slow
def test_bad_pages_never_crash_nor_pass_for_data(sound: bytes, tmp_path: Path) -> None:
    answers = try_all(tmp_path, bad_pages(sound, 1))
    assert [answer for answer in answers if not is_right(answer)] == []


def test_sound_file_is_sound(sound: bytes, tmp_path: Path) -> None:
    assert try_all(tmp_path, iter([sound])) == [f"ok {DOCS_MADE} problems=0"]


def meta_field(sound: bytes, page: int, offset: int, value: int) -> bytes:
    """Return the file with one u64 of a meta page (mdb.c, MDB_meta) set to `value`."""
    content = bytearray(sound)
    struct.pack_into("=Q", content, page * PAGE + 16 + offset, value)
    return bytes(content)


def test_meta_page_that_would_take_the_last_update_back_is_refused(
    sound: bytes, tmp_path: Path
) -> None:
    transactions = [struct.unpack_from("=Q", sound, page * PAGE + 16 + 128)[0] for page in (0, 1)]
    newer = transactions.index(max(transactions))
    path = place(tmp_path, 0, meta_field(sound, newer, 128, max(transactions) - 64))
    refuse(path, DataLoss, "not of successive transactions")


def test_meta_page_with_an_absurd_map_is_refused(sound: bytes, tmp_path: Path) -> None:
    refuse(place(tmp_path, 0, meta_field(sound, 0, 16, 1 << 60)), DataLoss, "says the map has")


@pytest.mark.parametrize("lacking", [b"hist", b"sys", b"revision"])
def test_store_that_lacks_a_part_is_refused(path: Path, lacking: bytes) -> None:
    Store.open(path, TABLES).close()
    with lmdb.open(str(path), max_dbs=9) as env, env.begin(write=True) as txn:
        sys = env.open_db(b"sys", txn=txn)
        if lacking == b"revision":
            txn.delete(lacking, db=sys)
        else:
            txn.drop(env.open_db(lacking, txn=txn))
    if lacking == b"sys":
        refuse(path, FailedPrecondition, "another program")
    else:
        refuse(path, DataLoss, f"it lacks (its )?{lacking.decode()}")


def tree(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refuse(path: Path, kind: type[SnapfsError], match: str) -> None:
    """Check that store and reader refuse the directory and leave it as it was."""
    before = tree(path)
    for opener in (Store.open, ReadStore.open):
        with pytest.raises(kind, match=match):
            opener(path, TABLES)
        assert tree(path) == before


@pytest.mark.parametrize(
    "content", [b"", b"text\n" * 5000, b"\xde\xc0\xef\xbe" * 4096], ids=["empty", "text", "magic"]
)
def test_file_that_is_not_lmdbs_is_refused(tmp_path: Path, content: bytes) -> None:
    path = place(tmp_path, 0, content)
    refuse(path, DataLoss, f"{path}/data.mdb is damaged or not a snapfs store .*it was left")


@pytest.mark.parametrize("version", [0, 1])
def test_lmdb_file_of_another_program_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "foreign"
    with lmdb.open(str(path), max_dbs=2, lib_version=version) as env:
        db = env.open_db(b"sys")
        with env.begin(write=True) as txn:
            txn.put(b"theirs", b"data", db=db)
    (path / "lock.mdb").unlink()
    if version == 0:
        refuse(path, FailedPrecondition, f"{path}/data.mdb is an LMDB file of another program")
    else:
        refuse(path, DataLoss, "not a meta page|data version")


def rewrite_format(path: Path, change: Callable[[], bytes]) -> None:
    with lmdb.open(str(path), max_dbs=2) as env:
        db = env.open_db(b"sys")
        with env.begin(write=True) as txn:
            txn.put(schema.FORMAT_KEY, schema.seal(schema.FORMAT_KEY, change()), db=db)


def test_newer_format_is_refused(path: Path) -> None:
    Store.open(path, TABLES).close()
    rewrite_format(path, lambda: schema.format_payload(schema.FORMAT + 1))
    refuse(
        path, FailedPrecondition, r"is of format 2 and this snapfs knows up to 1; use the snapfs"
    )


def test_foreign_format_row_is_refused(path: Path) -> None:
    Store.open(path, TABLES).close()
    rewrite_format(path, lambda: b"theirs")
    refuse(path, FailedPrecondition, "another program")


def test_directory_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "more").mkdir()
    refuse(tmp_path, FailedPrecondition, r"holds other files \(letter.txt, more\) and no store")


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("dear")
    for opener in (Store.open, ReadStore.open):
        with pytest.raises(FailedPrecondition, match="is not a directory"):
            opener(path, TABLES)


def test_store_whose_data_file_is_gone_is_not_begun_anew(path: Path) -> None:
    Store.open(path, TABLES).close()
    (path / inspection.DATA_FILE).unlink()
    refuse(path, DataLoss, "data.mdb is missing though a store was here; restore it")


def test_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with Store.open(tmp_path, TABLES) as store:
        assert store.check() == []

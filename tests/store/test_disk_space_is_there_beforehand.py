"""What LMDB writes through its map has its blocks before a disk can be full."""

from snapfs.store import Store
from snapfs.store.readertable import FILE_BYTES
from snapfs.store.space import BALLAST_BYTES


def test_the_lock_file_has_no_holes_and_lmdb_takes_all_of_it(tmp_path):
    with Store.open(tmp_path / "store", ()) as store:
        found = (tmp_path / "store" / "lock.mdb").stat()
        assert found.st_size == FILE_BYTES
        assert found.st_blocks * 512 >= FILE_BYTES
        with store.view():
            pass
    with Store.open(tmp_path / "store", ()) as store:
        store.update(lambda tx: tx.sequence("s"))


def test_the_data_file_has_blocks_beyond_its_end_however_it_grows(tmp_path):
    data = tmp_path / "store" / "data.mdb"
    with Store.open(tmp_path / "store", ()) as store:
        for _ in range(30):
            store.update(lambda tx: tx.put_intent(b"x" * 1_000_000))
            found = data.stat()
            assert found.st_blocks * 512 >= found.st_size + BALLAST_BYTES // 2 - 1_100_000
        store.update(lambda tx: tx.sequence("s"))
        found = data.stat()
        assert found.st_blocks * 512 >= found.st_size + BALLAST_BYTES // 2
        assert found.st_blocks * 512 < found.st_size + 2 * BALLAST_BYTES

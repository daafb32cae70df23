"""What LMDB writes through its map has its blocks before a disk can be full."""

from snapfs.store import Store
from snapfs.store.space import LOCK_FILE_BYTES


def test_the_lock_file_has_no_holes_and_lmdb_takes_all_of_it(tmp_path):
    with Store.open(tmp_path / "store", ()) as store:
        found = (tmp_path / "store" / "lock.mdb").stat()
        assert found.st_size == LOCK_FILE_BYTES
        assert found.st_blocks * 512 >= LOCK_FILE_BYTES
        with store.view():
            pass
    with Store.open(tmp_path / "store", ()) as store:
        store.update(lambda tx: tx.sequence("s"))

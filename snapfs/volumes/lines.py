"""Branches of volumes as a program uses them; the rules are in branches.py."""

from __future__ import annotations

from snapfs.store import WriteTx
from snapfs.volumes import branches, refs, sets
from snapfs.volumes.common import Common
from snapfs.volumes.ids import BranchId
from snapfs.volumes.model import NO_NOTE, Branch, Note


class Lines:
    """The branches of the sets of one root; each is found by a volume or a set, `of`."""

    def __init__(self, common: Common) -> None:
        self.common = common

    def create(self, of: str, name: str, *, ref: str = refs.HEAD, why: Note = NO_NOTE) -> Branch:
        """Create a branch that ends at a snapshot, with all of its history.

        Raises AlreadyExists, InvalidArgument for the name, and what resolving raises.
        """

        def create(tx: WriteTx) -> Branch:
            set_id, row = self.common.source(tx, of)
            tip = refs.resolve(tx, set_id, ref, row).row
            branch = BranchId(self.common.new_id())
            made = branches.create(tx, sets.find(tx, set_id).oid, branch, name, tip, why)
            return branches.show(tx, made)

        return self.common.update(create)

    def of(self, of: str) -> list[Branch]:
        """Return the branches of a set, those with names first, in their order."""
        with self.common.store.view() as tx:
            set_id, _ = self.common.source(tx, of)
            found = [branches.show(tx, row) for row in branches.rows(tx, set_id)]
        return sorted(found, key=lambda it: (not it.name, it.name, it.id))

    def rename(self, of: str, name: str, new_name: str) -> Branch:
        """Give a branch another name; volumes stay on it, its history stays its own."""

        def rename(tx: WriteTx) -> Branch:
            set_id, _ = self.common.source(tx, of)
            row = branches.resolve(tx, set_id, name)
            return branches.show(tx, branches.rename(tx, row, new_name))

        return self.common.update(rename)

    def remove(self, of: str, name: str, *, why: Note = NO_NOTE) -> Branch:
        """Remove a branch; what only it reached stays until its history expires.

        FailedPrecondition while a volume is on it.
        """

        def remove(tx: WriteTx) -> Branch:
            set_id, _ = self.common.source(tx, of)
            row = branches.resolve(tx, set_id, name)
            gone = branches.show(tx, row)
            branches.remove(tx, row, why)
            return gone

        return self.common.update(remove)

"""Names of options after `-o`, by what becomes of them.

Known are those of fuse-overlayfs, of the kernel's overlayfs, of libfuse and of mount(8). What only
tunes another program, or asks for what is so anyway, is taken and does nothing; what would change
the files that are shown or written is taken in earnest or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

TAKEN = frozenset(  # as words: a name a line would bury the rest
    """
    lowerdir upperdir workdir redirect_dir metacopy awake uidmapping gidmapping squash_to_root
    squash_to_uid squash_to_gid static_nlink timeout fsync volatile noacl noxattrs
    debug fsname subtype allow_other allow_root
    """.split()  # noqa: SIM905
)

CONTEXTS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
"""Taken where SELinux is on, else ignored, as mount(8) has it."""

IGNORED = frozenset(  # as above
    """
    clone_fd max_threads max_idle_threads threaded fast_ino writeback default_permissions
    auto_unmount kernel_cache auto_cache max_read max_write splice_read splice_write
    splice_move no_splice_read no_splice_write no_splice_move norelatime
    nostrictatime lazytime nolazytime defaults auto noauto user nouser users owner group
    iversion noiversion mand nomand silent loud
    _netdev nofail comment loop index xino uuid
    """.split()  # noqa: SIM905
)
"""Threads and buffers are ours to choose; hard links and numbers are whole in any case."""

_OFF = frozenset({"off", "0"})

REFUSED: Mapping[str, tuple[frozenset[str], str]] = {
    "xattr_permissions": (
        _OFF,
        "owners and modes kept in attributes are not supported; run as root",
    ),
    "plugins": (frozenset({""}), "fuse-overlayfs plugins cannot be loaded; leave the option out"),
    "userxattr": (
        frozenset(),
        "user.overlay. attributes are not read; root's trusted.overlay. are, leave the option out",
    ),
    "nfs_export": (_OFF, "there are no file handles to export; leave the option out"),
    "verity": (_OFF, "digests of lower files are not checked; leave the option out"),
    "datadir": (frozenset(), "layers with data only are not read; use lowerdir"),
    "remount": (
        frozenset(),
        "an overlay keeps its options; unmount it and mount it again, or make this mount of it "
        "read-only with mount -i -o remount,bind,ro",
    ),
    "uid": (frozenset(), "not an option of overlays; use squash_to_uid or uidmapping"),
    "gid": (frozenset(), "not an option of overlays; use squash_to_gid or gidmapping"),
    "umask": (frozenset(), "modes are shown as they are stored; leave the option out"),
    "blkdev": (frozenset(), "an overlay lies on no block device; leave the option out"),
}
"""Name to the values that ask for nothing, and why any other is refused."""


def known() -> frozenset[str]:
    """Return every name here."""
    return TAKEN | CONTEXTS | IGNORED | REFUSED.keys()

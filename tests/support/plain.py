"""What pyfuse3 alone cannot do: the one place that says so, for each test that is about it."""

from __future__ import annotations

LACKS = {
    "passthrough": "an open's reply cannot name a file for the kernel to read and write by itself",
    "the fast lane": "requests are read by libfuse, so all go to Python",
    "no opens": "a lane without opens is one of passthrough here, and both go without",
    "handles of a dead worker": "READ and WRITE come without their node",
    "statfs of a snapshot": "STATFS comes without its node, so `df` tells the disk's",
    "times of access": "a read from the kernel's cache changes none",
    "fallocate": "there is no handler of FALLOCATE",
    "SEEK_DATA": "there is no handler of LSEEK, so the kernel takes a file for one without holes",
    "O_TMPFILE": "there is no handler of TMPFILE",
    "time of birth": "there is no handler of STATX",
    "flags of inodes": "there is no handler of IOCTL",
    "a channel to miss": "the test is about its absence, which is the case here",
}
"""What a test marked `channel` names, and why it has no place in `make plain`."""

ROWS = {
    "a descriptor opened before a copy-up reads what is written after it": "passthrough",
    "it is opened again by /proc/self/fd to write": "passthrough",
    "a mapping made before a copy-up shows what is written after it": "passthrough",
    "a lock taken before a copy-up holds against those who open after it": "passthrough",
    "SEEK_DATA and SEEK_HOLE find the data, before and after a copy-up": "SEEK_DATA",
    "fallocate: allocate, keep size, punch holes, zero": "fallocate",
    "O_TMPFILE, and a name for it later": "O_TMPFILE",
    "statx tells the time of birth": "time of birth",
    "lsattr and chattr (FS_IOC_GETFLAGS, SETFLAGS)": "flags of inodes",
}
"""Rows of docs/posix.md that are the other way round on pyfuse3 alone; by what of LACKS."""

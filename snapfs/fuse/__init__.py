"""The FUSE side: mount, handover, worker, pyfuse3 operations.

Importing it loads the channel's library, which has to be in the process before pyfuse3.
"""

from snapfs.fuse import channel

channel.load()

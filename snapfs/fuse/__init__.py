"""The FUSE side: mount, handover, worker, pyfuse3 operations."""

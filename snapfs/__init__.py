"""snapfs: a FUSE snapshotter for containers.

This package is the product; `plugin/` holds what is particular to containerd.
The rooms and the direction of imports are described in docs/architecture.md.
"""

__version__ = "0.1.0"

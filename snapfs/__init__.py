"""snapfs: a FUSE snapshotter for containers.

This package is the product; `plugin/` holds what is particular to containerd.
The rooms and the direction of imports are described in docs/architecture.md.
"""

import os

# gRPC's handlers of fork(2) wait for its threads, for ever when one of them is just ending; nothing
# here forks and goes on with gRPC, which reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__version__ = "0.1.0"

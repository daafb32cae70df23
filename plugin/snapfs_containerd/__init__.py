"""The containerd side: a containerd.services.snapshots.v1 server over snapfs."""

"""containerd's filter grammar."""

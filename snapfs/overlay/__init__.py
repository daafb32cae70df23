"""The rules of a merged tree: no pyfuse3, no gRPC, no LMDB."""

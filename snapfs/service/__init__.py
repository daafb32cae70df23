"""The snapfs.v1 gRPC API and its client."""

"""The snapshot metastore and the lifecycle of layer directories."""

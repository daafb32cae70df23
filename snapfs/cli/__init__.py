"""The snapfs command."""

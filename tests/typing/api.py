"""What a user of the public names may rely on; checked by mypy, never run."""

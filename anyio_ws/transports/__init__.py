"""Ways to move bytes, one a file, behind the interface of `base`."""

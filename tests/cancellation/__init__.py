"""Every public call, cancelled at every point where it waits."""

"""What the notebooks measure inside the networks."""

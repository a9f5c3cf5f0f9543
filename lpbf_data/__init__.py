"""What a simulated part is, how it lies on disk, and how it is served."""

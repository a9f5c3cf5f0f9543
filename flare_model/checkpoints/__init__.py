"""A model with its weights on disk and on the hub, and its use in millimetres."""

"""FLARE and its training."""

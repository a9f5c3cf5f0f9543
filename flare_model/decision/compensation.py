"""Surfaces moved by a displacement, as `lpbf_data.geometry.compensation` moves them for the simulator too."""

from lpbf_data.geometry.compensation import LARGEST_SCALE, Compensated, compensate_surface, joined

__all__ = ["LARGEST_SCALE", "Compensated", "compensate_surface", "joined"]

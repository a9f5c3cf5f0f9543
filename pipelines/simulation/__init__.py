"""Laser powder bed fusion, layer by layer: an open simulator that writes what NetFabb writes.

Parts are drawn or come as surfaces, are meshed, heated, deformed and cut off; README.md beside it has the physics.
"""

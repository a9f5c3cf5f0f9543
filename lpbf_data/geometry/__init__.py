"""Meshes and surfaces: hexahedra, outer surface, layer groups, reading and repairing surfaces, voxelizing, drawing.

It knows coordinates and cells, not where they come from or what is learned of them.
"""

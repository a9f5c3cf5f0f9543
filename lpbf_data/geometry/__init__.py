"""Hexahedral meshes: neighbours, outer surface, voxelizing, drawing."""

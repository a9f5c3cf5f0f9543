"""What models are made of: mixer, attention, pointwise networks, meshes and tiles of a batch.

Written to be read; which kernel computes a layer on a device is decided here too.
"""

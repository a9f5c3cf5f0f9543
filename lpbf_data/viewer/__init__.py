"""Parts in 3D on a page that opens without a network: surfaces with their fields packed, and the page itself.

For the report of a data set and for predictions alike: it knows meshes and fields, not their origin.
"""

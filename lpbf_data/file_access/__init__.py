"""Access to the files of a data set by name and byte range: a local folder, a web server, an object store, the hub.

Nothing here knows the formats of the files.
"""

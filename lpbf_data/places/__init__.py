"""Where a data set lies, and how its bytes are fetched: a local folder, a web server, an object store, the hub.

It knows names and ranges of bytes, not what is in them.
"""

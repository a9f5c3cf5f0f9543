"""What a simulated run leaves behind: NetFabb's files, its log, archives, and runs that fail.

The reader of these files is `pipelines.netfabb`.
"""

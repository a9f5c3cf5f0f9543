"""What a case is: its fields with units, its row in the manifest, its statistics, the order of tensor components.

Values only: nothing here opens a file, and every other subpackage may use it.
"""

"""Materials with their sources, the inherent strain of each calibration, and the YAML files of both.

Values in SI units, as each field says.
"""

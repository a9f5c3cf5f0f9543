"""Laser powder bed fusion, layer by layer: an open simulator that writes what NetFabb writes.

Parts are drawn in [families](families.py) or come as STL files, are meshed, heated in [thermal](thermal.py), deformed
in [mechanics](mechanics.py), and written in NetFabb's form by [result_writer](result_writer.py).
"""

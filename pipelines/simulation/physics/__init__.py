"""Heat, mechanics, cut and recoater of one part, from its cells to displacements and stresses.

Nothing here reads or writes files.
"""

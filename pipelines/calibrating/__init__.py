"""How much layers shrink, fitted to measured displacements or to a result of NetFabb by a few simulations.

Measured values are read and checked to lie on the part; a material file is written only where the fit improves it.
"""

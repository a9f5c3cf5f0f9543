"""Which parts are simulated: fourteen drawn families, the corpus and its draws, and parts known by name.

Nothing here knows how a part is simulated; a draw gets the results of simulations.
"""

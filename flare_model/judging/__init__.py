"""How good predictions are: scores, interference with the recoater, tables and pictures of an evaluation.

It compares predictions with the truth of a split; nothing in it depends on training.
"""

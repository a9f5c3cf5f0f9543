"""How good predictions are: scores, interference with the recoater, tables and pictures of an evaluation.

It holds predictions against the truth of a split and knows no training.
"""

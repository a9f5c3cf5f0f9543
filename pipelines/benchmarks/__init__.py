"""Data of the other systems that surrogates are measured on, in the form of the published files.

Darcy's flow is generated here by the published recipe, deterministically, with the scores of trivial predictions.
"""

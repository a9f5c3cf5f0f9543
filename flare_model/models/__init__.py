"""The models that come with the package: FLARE, FLARE++ and those that they are compared with, and their contract.

The common backbone and the spectra of FLARE's heads are here too; nothing here depends on training.
"""

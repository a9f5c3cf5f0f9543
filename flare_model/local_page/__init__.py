"""The page to use the surrogate from: a server on the loopback address, uploads, and one computation at a time.

Above decision, whose words and numbers it shows; it keeps nothing and opens nothing to other machines.
"""

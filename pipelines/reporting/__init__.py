"""What is written about a data set: overview, card, metadata, pictures, and the report with its gallery.

It reads what a build has written and changes no data.
"""

"""Where results come from: finding cases in folders, archives and object stores, and opening their files.

It tells one case from the other and what is litter; what is in the files it doesn't know.
"""

"""The local web page: a server on the loopback address, uploads, and a queue that computes one part at a time.

It shows the texts and numbers of `decision`, keeps no files, and can't be reached from other machines.
"""

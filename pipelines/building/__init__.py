"""How a build runs: stages, engines, workers, attempts, shards, and the commit that makes a data set of them.

What a case means is decided below it; here it is only worked on, once, whatever is killed on the way.
"""

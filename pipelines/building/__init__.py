"""How a build runs: its stages, workers, shards, attempts, and what it leaves behind."""

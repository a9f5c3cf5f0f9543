"""How good predictions are: scores, interference, tables and pictures of an evaluation."""

"""Which cases enter the data set, and in which split."""

"""Which cases enter the data set, and in which split: filters, designs, rules of splits.

From records alone; no array is read.
"""

"""From a prediction to a decision: what an engineer is told of a part, which way up to build it, and what to print.

Above prediction and judging: it knows models and their intervals, and no command.
"""

"""From a prediction to a decision: the answer for a part, its orientation in the build, and the compensated surface.

Above prediction and judging: it knows models and their intervals, and no command.
"""

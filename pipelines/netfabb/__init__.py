"""What NetFabb leaves behind, as a case: its result files, the solver's log, the points of a build.

NetFabb's conventions are kept here: names, units, order of tensor components, what a log says of success.
"""

"""What NetFabb leaves behind: results, the solver's log, points."""

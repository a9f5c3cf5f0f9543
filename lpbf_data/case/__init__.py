"""What a case is: its fields, its description, and the statistics of many."""

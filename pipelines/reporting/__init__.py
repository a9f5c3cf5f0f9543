"""What is written about a data set: overview, card, metadata, report with its gallery."""

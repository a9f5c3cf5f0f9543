"""What is measured and checked on one case, and its conversion."""

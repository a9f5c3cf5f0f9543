"""The models, their sizes, and what any model must do."""

"""The models, what any model must do, and what their heads communicate."""

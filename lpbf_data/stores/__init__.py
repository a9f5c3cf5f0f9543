"""How cases lie on disk: one module a format, reader and writer together."""

"""Measurements of corerun; each module is a command that ends with one JSON line."""

"""Finds out in a few requests what a server takes."""

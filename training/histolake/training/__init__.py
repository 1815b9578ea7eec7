"""Pairs in, registered models out."""

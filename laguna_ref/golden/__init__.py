"""Committed results that any machine can recompute."""

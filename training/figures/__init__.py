"""Figures: everything that uses Matplotlib."""

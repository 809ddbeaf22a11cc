"""Metrics over the images of all processes."""

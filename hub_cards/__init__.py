"""Data of the model cards: the template, one file for each published depth, and the picture."""

"""Data of the model cards: the template, a file for each published depth, the picture."""

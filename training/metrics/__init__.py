"""How good a model is, over the images of all processes."""

"""Architectures, recipes and studies: data that `rednet.training` finds by name."""

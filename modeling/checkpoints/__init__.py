"""Checkpoints of others: where they come from, how they are read, and which model their weights make."""

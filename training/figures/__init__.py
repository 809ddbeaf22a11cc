"""Everything that is drawn with Matplotlib."""

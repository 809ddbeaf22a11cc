"""Data of the model cards: templates of card and notebook, a file for each published depth, peers, and the picture."""

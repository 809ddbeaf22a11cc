"""Scripts that train, fine-tune, evaluate and compare RedNets, and what they share."""

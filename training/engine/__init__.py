"""What all training scripts share: the loop, checkpoints, the run folder."""

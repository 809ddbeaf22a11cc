"""Running a training: launch, loop, optimization, checkpoints, and the files of a run."""

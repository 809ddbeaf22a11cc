"""What the packages of `training` share: files, random numbers, processes, CPUs, errors."""

"""What all rooms share: files, random numbers, processes, CPUs, errors."""

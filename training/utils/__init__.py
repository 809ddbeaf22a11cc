"""What the rooms share: files, random numbers, CPUs."""

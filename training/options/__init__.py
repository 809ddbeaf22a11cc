"""What a script can be told: groups of options, and how they are read from YAML and the command line."""

"""The options of the scripts: groups of options, and their parsing from YAML and the command line."""

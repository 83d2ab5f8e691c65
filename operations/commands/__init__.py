"""The groups of commands of `skyhigh`, one module for each. They never import each other."""

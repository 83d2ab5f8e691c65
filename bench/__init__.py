"""The benchmark of `make bench`: each measure and its baseline, in one run."""

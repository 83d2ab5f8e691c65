"""What `make bench` runs: each measure of the system beside its baseline, in one run on one machine."""

"""Owns the flights: what leaves when and at which fare, how many seats are free, and how flights connect."""

"""Cabin layouts: the JSON files, their parser, and those of flights in use."""

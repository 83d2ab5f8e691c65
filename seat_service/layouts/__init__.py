"""Cabin layouts: one JSON file for each aircraft, their parser, and the layouts that this process can use."""

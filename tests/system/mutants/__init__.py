"""Planted bugs that the tester has to find.

`catalogue.py` has the bugs, and `__main__.py` the command that runs them.
"""

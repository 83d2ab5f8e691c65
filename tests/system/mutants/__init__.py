"""Planted bugs that the tester has to find (`catalogue.py`), and the command that runs them (`__main__.py`)."""

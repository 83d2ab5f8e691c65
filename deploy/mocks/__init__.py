"""Mocks that fail on demand: scales, payment provider, mail server."""

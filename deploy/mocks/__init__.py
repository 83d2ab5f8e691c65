"""What others own, so that it can fail on demand: scales, payment provider, mail server."""

"""The steps of a check-in that ask another service before their transition: start, seat, fee, end."""

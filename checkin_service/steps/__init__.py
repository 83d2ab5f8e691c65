"""The steps of a check-in that ask another service before their transition: start, bags, seat, fee, end."""

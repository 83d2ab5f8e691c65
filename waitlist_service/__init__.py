"""Waitlists: of those who want a freed seat, whoever joined first gets it."""

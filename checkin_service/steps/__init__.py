"""Steps of a check-in that call another service before their transition."""

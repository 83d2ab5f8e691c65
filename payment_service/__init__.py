"""Owns payment intents: what is to be paid, how it was tried, what the provider says, and what was given back."""

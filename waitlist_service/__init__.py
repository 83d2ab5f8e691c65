"""The waitlist service: a released seat goes to the oldest entry that wants it."""

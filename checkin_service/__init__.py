"""The check-in service: flight manifests, and the check-in of each passenger."""

"""Deployment of SkyHigh: the local stack, and mocks of the external systems."""

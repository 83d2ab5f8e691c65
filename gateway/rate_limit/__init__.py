"""The gateway service, which Envoy calls.

It has the shared rate limits, detects abuse, and sends Envoy new configuration while it runs.
"""

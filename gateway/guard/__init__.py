"""The gateway service, which Envoy calls to protect the services behind it.

It counts calls against the shared rate limits, detects abuse in Envoy's access log, blocks abusive sources, and sends
Envoy new limits and blocks while it runs.
"""

"""The service that the gateway asks: shared limits, abuse, and what Envoy is told while it runs."""

"""The gateway service, which Envoy calls: shared rate limits, abuse detection, and configuration at run time."""

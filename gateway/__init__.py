"""The edge: Envoy's configuration and the gateway service.

The configuration is made from the protos and one table of the RPCs that outside clients can call.
"""

"""The edge: Envoy's configuration, made from the protos and one table of the RPCs that outside clients can call."""

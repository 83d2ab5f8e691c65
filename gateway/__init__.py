"""The edge: Envoy's configuration, made from the protos and one table of what the outside may call."""

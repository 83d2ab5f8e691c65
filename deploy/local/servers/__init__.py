"""The servers of a local stack that are not ours: Postgres, Redis, RabbitMQ and Envoy."""

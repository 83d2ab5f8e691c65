"""What runs SkyHigh: the local stack here; containers and Kubernetes beside it."""

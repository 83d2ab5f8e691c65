"""What readers of a flight's seats get: the map, its changes as a stream, counts and suggestions."""

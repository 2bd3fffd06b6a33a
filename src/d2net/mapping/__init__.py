"""From matches to a map, and from a photo to its place in it."""

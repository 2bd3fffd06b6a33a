"""The picture of a map and its page."""

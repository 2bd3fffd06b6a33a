"""The map to look at: a still picture, and a page to turn it around in."""

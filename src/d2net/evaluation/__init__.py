"""Standard protocols on any data, with any features."""

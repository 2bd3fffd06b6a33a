"""From photos to features."""

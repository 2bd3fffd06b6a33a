"""The networks, their weights and their interface."""

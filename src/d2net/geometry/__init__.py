"""Coordinates, cameras and robust estimation: plain functions on points, without images."""

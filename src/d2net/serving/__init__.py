"""The web page: match two photos, and localize photos in a map."""

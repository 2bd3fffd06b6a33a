"""The field's protocols on any data, with any features."""

"""Image files to uint8 pixels."""

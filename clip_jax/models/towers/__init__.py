"""The image and text towers, one file each."""

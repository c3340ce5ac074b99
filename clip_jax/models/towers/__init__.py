"""The image and text towers, one file each. `models.tower.TOWERS` names them."""

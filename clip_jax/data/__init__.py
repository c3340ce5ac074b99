"""Sources of image-caption pairs, their exact order, and the batches made of them."""

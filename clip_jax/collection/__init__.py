"""What a trained model makes of a collection: embeddings in files, predictions, and their reading."""

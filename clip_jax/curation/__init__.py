"""Which samples of a collection are kept, and what is in it: filters and maps of embeddings."""

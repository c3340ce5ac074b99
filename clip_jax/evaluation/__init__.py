"""Measuring a model: embeddings of a data set, zero-shot accuracy, retrieval, the report."""

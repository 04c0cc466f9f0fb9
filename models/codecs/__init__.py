"""Codecs: embeddings of one model become codes of a few bits a dimension, which are an embedding space of their own."""

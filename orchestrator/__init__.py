"""hotrefresh: upgrade the embedding model of a search gallery now, re-embed behind."""

__version__ = "0.1.0"

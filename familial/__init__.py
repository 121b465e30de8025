"""Train families of language models, measure them, and fit their laws."""

__version__ = '0.1.0'

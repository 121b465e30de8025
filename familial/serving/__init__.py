"""A trained family in use: evaluation, decoding, benchmark."""

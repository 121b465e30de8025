"""A trained family in use: its exits evaluated, exported, decoded, relayed."""

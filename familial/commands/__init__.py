"""The subcommands: each declares its flags and calls the library."""

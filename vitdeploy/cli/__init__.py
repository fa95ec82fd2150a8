"""The command line: one command a verb, each a single call of the library."""

"""One module a verb of the library; each reads top to bottom."""

"""One form for every ViT: foreign graphs rewritten into the operators that our own export uses, one rewrite a file."""

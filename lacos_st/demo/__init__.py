"""A page on which a model is tried by hand."""

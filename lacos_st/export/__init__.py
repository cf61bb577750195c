"""A model on its way to others: a smaller vocabulary, and the formats of other software."""

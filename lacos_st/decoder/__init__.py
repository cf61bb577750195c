"""The language model: 8-bit layers, packed tokens, attention, and the memory that they take."""

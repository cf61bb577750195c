"""Encoding files of texts, resumable."""

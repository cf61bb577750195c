"""Training data: files and Hub data sets in, rows (anchor, positive, negatives) out."""

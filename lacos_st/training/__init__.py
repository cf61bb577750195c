"""Training: the losses, and a run that can be resumed."""

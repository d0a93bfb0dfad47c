"""For maintainers: the training of the mini models."""

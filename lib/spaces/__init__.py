"""Spaces of features compared: SVCCA, RSA, Procrustes, semantic subspaces (Lan et al.)."""

"""Predictions -> the formats of the tools that train on weak labels, or correct them. Begin at export.py."""

"""Exports of predictions as weak labels, in the formats of training and annotation tools; see `export`."""

"""Compilers of networks: one module for each."""

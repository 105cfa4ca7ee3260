"""Measuring on this machine."""

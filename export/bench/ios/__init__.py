"""Measuring on iPhones and iPads, through devicectl."""

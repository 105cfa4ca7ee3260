"""Measures a `.pte` where it will run: tokens per second and memory, one result format for every device."""

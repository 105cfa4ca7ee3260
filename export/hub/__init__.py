"""Publishes a `.pte` on the hub: what is sent and whether it is whole, the model card, the upload."""

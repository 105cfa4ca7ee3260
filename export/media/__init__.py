"""Pictures and sound to what the encoders of a multimodal model take; knows nothing of models and needs no torch."""

"""Fine-tuning of networks from image-level labels."""

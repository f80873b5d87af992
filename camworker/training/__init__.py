"""Fine-tuning from image-level labels."""

"""The rows of the zoo, released checkpoints, fine-tuning, anatomy."""

"""Train networks: fine-tuning with a teacher, learning rates, and the training of teachers."""

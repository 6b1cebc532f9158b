"""Train networks: fine-tuning with a teacher, learning rates, teachers themselves."""

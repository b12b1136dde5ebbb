"""Training: models with SID rows, supervised fine-tuning, and the callbacks around it."""

"""What an administrator steers: replay, simulator, training and models, faults on purpose."""

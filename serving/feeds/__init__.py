"""What is followed in the background and held in memory: trends, models, the catalogue, positions."""

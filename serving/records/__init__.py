"""What went out and what came back: feedback, impressions, the request log, metrics."""

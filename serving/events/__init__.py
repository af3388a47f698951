"""Feedback in, impressions out, and the reactions to them."""

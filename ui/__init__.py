"""The shop and the dashboard."""
